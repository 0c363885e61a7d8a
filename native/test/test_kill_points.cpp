// Processes killed at every kill point of heap, copy table, queue and records: what is left is accounted for.
//
// A child attaches, and does all that a worker does natively: blocks, trees, runs, copies, records, tasks pushed,
// taken and given home. It dies at a passing of a point that the test has chosen; then the parent gives back what
// it held with the server's own reaper, and counts: no task runs, nothing waits for a task that nobody will end, no
// copy is pinned, no block is left. Each death costs milliseconds, so every point gets several.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <signal.h>
#include <string>
#include <sys/wait.h>
#include <vector>

#include "base/kill_point.hpp"
#include "cache/copies.hpp"
#include "server/deliver.hpp"
#include "server/reaper.hpp"
#include "server/quiet_thread.hpp"
#include "tasks/queue.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using cache::Copies;
using server::Peers;
using tasks::Queue;
using tasks::RecordState;
using test::Host;
using test::make_block;

namespace {

bool is_of(std::string_view name, std::string_view room) { return name.substr(0, room.size()) == room; }

// What this test's children pass. The others need sockets, or a process that adopts.
[[maybe_unused]] bool is_passed_here(std::string_view name) {
  return !is_of(name, "call.") && !is_of(name, "replicate.") && name != "deliver.completion.sent" &&
         !is_of(name, "server.") && !is_of(name, "heap.adopt.") &&
         !is_of(name, "shared.");  // test_sync.cpp, test_channel.cpp
}

[[maybe_unused]] std::uint32_t index_of(std::string_view name) {
  return static_cast<std::uint32_t>(std::find(kKillPoints.begin(), kKillPoints.end(), name) -
                                    kKillPoints.begin());
}

}  // namespace

TEST("a point that is not armed does nothing, and one that is armed waits for its passing") {
  for (int passing = 0; passing < 3; ++passing) kill_point("heap.take.before");
  CHECK(kill_board.load() == nullptr);
#if DRUST_TEST_FORKS
  const pid_t pid = ::fork();
  if (pid == 0) {
    arm_kill_point(index_of("heap.take.before"), 3, KillAction::exit);
    kill_point("heap.take.before");
    kill_point("heap.take.after");
    kill_point("heap.take.before");
    if (kill_board.load()->passed[index_of("heap.take.before")].load() != 2) ::_exit(1);
    kill_point("heap.take.before");
    ::_exit(2);
  }
  int status = 0;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 86);
#endif
}

TEST("a point that is off costs next to nothing") {
  constexpr int kRounds = 20'000'000;
  std::atomic<std::uint64_t> work{0};
  const auto start = std::chrono::steady_clock::now();
  for (int round = 0; round < kRounds; ++round) work.fetch_add(1, std::memory_order_relaxed);
  const auto bare = std::chrono::steady_clock::now();
  for (int round = 0; round < kRounds; ++round) {
    work.fetch_add(1, std::memory_order_relaxed);
    kill_point("heap.take.before");
  }
  const auto end = std::chrono::steady_clock::now();
  const double ratio = std::chrono::duration<double>(end - bare) / std::chrono::duration<double>(bare - start);
  std::printf("      an atomic addition with a kill point beside it, without: %.2fx\n", ratio);
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  CHECK(ratio < 10);  // a look and a branch, whatever else the machine is doing
#endif
}

#if DRUST_TEST_FORKS
TEST("each action ends a process its own way") {
  const auto end_of = [](KillAction action) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::signal(SIGSEGV, SIG_DFL);  // a sanitizer's handler would print a page
      arm_kill_point(kAnyKillPoint, 1, action);
      kill_point("queue.push.ready");
      ::_exit(0);
    }
    int status = 0;
    ensure(::waitpid(pid, &status, WUNTRACED) == pid, "no child");
    if (!WIFSTOPPED(status)) return status;
    ::kill(pid, SIGCONT);  // a stopped one goes on
    ensure(::waitpid(pid, &status, 0) == pid && status == 0, "a stopped process does not go on");
    return 0;
  };
  CHECK_EQ(WTERMSIG(end_of(KillAction::kill)), SIGKILL);
  CHECK_EQ(WTERMSIG(end_of(KillAction::abort)), SIGABRT);
  CHECK_EQ(WTERMSIG(end_of(KillAction::segfault)), SIGSEGV);
  CHECK_EQ(WEXITSTATUS(end_of(KillAction::exit)), 86);
  CHECK_EQ(end_of(KillAction::stop), 0);
}

TEST("a thread that takes no signals ends its process all the same") {
  for (const KillAction action : {KillAction::kill, KillAction::segfault, KillAction::abort, KillAction::exit}) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      arm_kill_point(kAnyKillPoint, 1, action);
      server::start_quiet_thread("test", [] { kill_point("queue.push.ready"); }).join();
      ::_exit(0);
    }
    int status = 0;
    CHECK(::waitpid(pid, &status, 0) == pid && (WIFSIGNALED(status) || WEXITSTATUS(status) != 0));
  }
}

namespace {

GlobalPointer elsewhere(std::uint64_t number) {
  return {Address::make(9, 64 * (number + 1)), (1ULL << 48) | (number + 1), 128};
}

void free_tree(Heap& heap, const GlobalPointer& block) {
  std::vector<GlobalPointer> remote;
  static_cast<void>(heap.free(block, remote));
}

// One task from its spawn to its end, with everything in one process.
void run_task(Heap& heap, Queue& queue, Peers& peers) {
  Partition& partition = heap.partition();
  const std::uint64_t self = owner_word(OwnerKind::process, heap.process());
  const auto record = Queue::make_record(heap, partition.server());
  if (!record.ok()) return;
  const GlobalPointer task = make_block(heap, 300, {make_block(heap, 10)});
  test::block_at(partition, task.address).header().codec = tasks::kTaskCodec;
  Queue::find_record(partition, record.value())->call.store(task.address.raw());
  heap.set_owner(task, owner_word(OwnerKind::queue, {}));  // as bind/runtime.cpp submits
  static_cast<void>(queue.push(task, record.value()));
  const auto entry = queue.take(0);
  if (!entry.ok()) return;
  const GlobalPointer completion = make_block(heap, 50);
  if (!queue.returned(entry.value(), completion)) ::_exit(4);
  server::release_versions(heap, completion, heap.process());
  static_cast<void>(server::deliver(heap, peers, entry.value().record, RecordState::done, completion, false));
  heap.set_owner(entry.value().task, self);
  queue.finish(entry.value());
  free_tree(heap, entry.value().task);
  const auto done = Queue::wait(partition, record.value(), 0);
  if (done.ok()) {
    const GlobalPointer result = done.value()->completion();
    heap.set_owner(result, self);
    free_tree(heap, result);
  }
  static_cast<void>(heap.free_shallow(record.value()));
}

// One task from its spawn to its cancellation.
void cancel_task(Heap& heap, Queue& queue) {
  const auto record = Queue::make_record(heap, heap.partition().server());
  if (!record.ok()) return;
  const GlobalPointer task = make_block(heap, 300, {make_block(heap, 10)});
  test::block_at(heap.partition(), task.address).header().codec = tasks::kTaskCodec;
  Queue::find_record(heap.partition(), record.value())->call.store(task.address.raw());
  heap.set_owner(task, owner_word(OwnerKind::queue, {}));
  static_cast<void>(queue.push(task, record.value(), {.retries = 1}));
  if (const auto entry = queue.withdraw(record.value())) {  // as bind/tasks.cpp withdraws
    static_cast<void>(queue.returned(*entry, {}));
    static_cast<void>(Queue::complete(heap, record.value(), RecordState::lost, {}));
    free_tree(heap, entry->task);
    queue.finish(*entry);
  }
  static_cast<void>(heap.free_shallow(record.value()));
}

// Without end: the kill point ends it.
[[noreturn]] void live(const Partition& parents, std::uint32_t seed, std::uint32_t point, std::uint32_t nth) {
  auto attached = Partition::attach(::dup(parents.memfd()));
  const auto process =
      attached.value()->claim_process(ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
  Heap heap(*attached.value(), process.value());
  Copies copies(heap);
  Queue queue(heap);
  Peers peers(heap, {.token = {}});
  std::mt19937 random(seed);
  arm_kill_point(point, nth, KillAction::kill);
  while (true) {
    run_task(heap, queue, peers);
    cancel_task(heap, queue);
    if (random() % 4 == 0 && queue.take(1).ok()) ::_exit(4);  // there is none left
    const GlobalPointer tree = make_block(heap, 100, {make_block(heap, 200'000), make_block(heap, 10)});
    free_tree(heap, tree);
    free_tree(heap, make_block(heap, 3'000'000));
    const auto got = copies.acquire(elsewhere(random() % 50), 1000);
    if (got.ok()) {
      if (got.value().is_leader) {
        const GlobalPointer local = make_block(heap, random() % 70'000);
        if (random() % 8 == 0 || local.is_null()) {
          static_cast<void>(heap.free_shallow(local));
          copies.abandon(got.value().entry);
          continue;
        }
        copies.publish(got.value().entry, local);
      }
      copies.release(got.value().entry);
    }
    if (random() % 3 == 0) copies.evict(random() % 300'000);
    if (random() % 8 == 0) heap.reclaim();
  }
}

std::vector<ProcessId> slots_of(const Partition& partition, pid_t pid) {
  std::vector<ProcessId> slots;
  for (const ProcessInfo& info : partition.processes()) {
    if (info.pid == static_cast<std::uint32_t>(pid)) slots.push_back(info.id);
  }
  return slots;
}

// A server's half that outlives its processes.
struct Survivor {
  Host& host;
  Queue queue{*host.heap};
  Copies copies{*host.heap};
  Peers peers{*host.heap, {.token = {}}};
  server::Reaper reaper{*host.heap, queue, copies, peers};

  void reap(pid_t pid) {
    for (const ProcessId process : slots_of(*host.partition, pid)) reap(process);
  }
  void reap(ProcessId process) { reaper.reap(process, 0, "killed"); }

  // The dead one's tasks that were still queued run now, and end; then nothing may be left.
  void settle() {
    CHECK_EQ(queue.running(), 0U);
    while (true) {
      const auto entry = queue.take(0);
      if (!entry.ok()) break;
      static_cast<void>(server::deliver(*host.heap, peers, entry.value().record, RecordState::lost, {}, false));
      queue.finish(entry.value());
      free_tree(*host.heap, entry.value().task);
    }
    CHECK_EQ(reaper.tend(), 0U);
    CHECK_EQ(copies.pinned(), 0U);
    copies.evict(1ULL << 40);
    CHECK_EQ(copies.entries(), 0U);
    CHECK_EQ(host.partition->live_blocks(), 0U);
    host.partition->each_live_block([&](const BlockInfo& block) {
      std::printf("      left: codec %u, owner %llx\n", block.codec,
                  static_cast<unsigned long long>(block.owner));
      free_tree(*host.heap, block.pointer);  // so that the next death is judged alone
    });
    host.heap->reclaim();
    CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
  }
};

// A child that dies there; whether it did.
bool die_at(Host& host, std::uint32_t seed, std::uint32_t point, std::uint32_t nth) {
  const pid_t pid = ::fork();
  ensure(pid >= 0, "no fork");
  if (pid == 0) {
    ::alarm(20);
    live(*host.partition, seed, point, nth);
  }
  int status = 0;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  Survivor survivor{host};
  survivor.reap(pid);
  survivor.settle();
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

}  // namespace

TEST("a process killed at any kill point leaves nothing that is not accounted for") {
  Host host(64ULL << 20);
  std::uint32_t kills = 0;
  for (const std::uint32_t nth : {1U, 2U, 3U, 7U}) {
    for (std::uint32_t point = 0; point < kKillPoints.size(); ++point) {
      if (!is_passed_here(kKillPoints[point])) continue;
      const int before = test::failures().load();
      if (!CHECK(die_at(host, point, point, nth)) || test::failures().load() != before) {
        std::printf("      at %s, passing %u\n", std::string(kKillPoints[point]).c_str(), nth);
      }
      ++kills;
    }
  }
  std::printf("      %u processes killed\n", kills);
}

TEST("a process killed at a random passing of any kill point leaves nothing that is not accounted for") {
  Host host(64ULL << 20);
  const auto told = [](const char* variable, int otherwise) {
    const char* text = std::getenv(variable);
    return text != nullptr ? std::atoi(text) : otherwise;
  };
  const int rounds = told("DRUST_TEST_ROUNDS", 150);
  const int first_seed = told("DRUST_TEST_SEED", 5);
  std::mt19937 random(static_cast<std::uint32_t>(first_seed));
  for (int round = 0; round < rounds; ++round) {
    const auto seed = static_cast<std::uint32_t>(random());
    const auto nth = static_cast<std::uint32_t>(1 + random() % 3000);
    const int before = test::failures().load();
    if (!CHECK(die_at(host, seed, kAnyKillPoint, nth)) || test::failures().load() != before) {
      std::printf("      seed %u, passing %u; again: DRUST_TEST_SEED=%d DRUST_TEST_ROUNDS=%d test_kill_points random\n",
                  seed, nth, first_seed, round + 1);
      break;
    }
  }
  std::printf("      %d processes killed\n", rounds);
}

TEST("an adopter killed while it adopts leaves its work to the next") {
  Host host(64ULL << 20);
  for (const char* const name : {"heap.adopt.inherited", "heap.adopt.opened"}) {
    for (std::uint32_t nth = 1; nth <= 3; ++nth) {
      const pid_t first = ::fork();
      if (first == 0) live(*host.partition, nth, index_of("heap.free.child"), 1 + nth);
      CHECK_EQ(::waitpid(first, nullptr, 0), first);
      const std::vector<ProcessId> firsts = slots_of(*host.partition, first);
      if (!CHECK_EQ(firsts.size(), 1U)) return;
      const pid_t adopter = ::fork();
      if (adopter == 0) {
        Host own{16ULL << 20};
        auto attached = Partition::attach(::dup(host.partition->memfd()));
        own.heap.reset();  // before the partition that it lies in
        own.partition = std::move(attached.value());
        own.process = own.join();
        own.heap = std::make_unique<Heap>(*own.partition, own.process);
        arm_kill_point(index_of(name), nth, KillAction::kill);
        Survivor{own}.reap(firsts[0]);
        ::_exit(0);
      }
      int status = 0;
      CHECK_EQ(::waitpid(adopter, &status, 0), adopter);
      if (nth == 1) CHECK(WIFSIGNALED(status));
      // Both: what the adopter had taken over is his, the rest still the first one's.
      Survivor survivor{host};
      survivor.reap(firsts[0]);
      survivor.reap(adopter);
      survivor.settle();
    }
  }
}
#endif
