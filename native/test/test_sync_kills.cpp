// Processes that are killed at each step of a lock: who comes next gets it, and nothing is left that nobody owns.
#include <sys/mman.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include "base/futex.hpp"
#include "base/kill_point.hpp"
#include "sync/atomic.hpp"
#include "sync/bury.hpp"
#include "test/harness.hpp"
#include "test/shared_fixture.hpp"

using namespace drust;
using namespace drust::sync;
using namespace drust::test;

#if DRUST_TEST_FORKS
namespace {

// In a child: reads and writes as fast as it can; never returns.
[[noreturn]] void contend_both(int memfd, const GlobalPointer& object, std::uint32_t point, std::uint32_t nth, int ready) {
  auto attached = heap::Partition::attach(memfd);
  if (!attached.ok()) ::_exit(2);
  heap::Partition& partition = *attached.value();
  const auto process = partition.claim_process(heap::ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
  if (!process.ok()) ::_exit(3);
  heap::Heap heap(partition, process.value());
  const Who who = Who::make(partition.server(), process.value());
  auto* words = find<RwLockWords>(partition, object);
  static_cast<void>(!::write(ready, &process.value(), sizeof process.value()));
  arm_kill_point(point, nth, KillAction::kill);
  std::vector<GlobalPointer> remote;
  for (std::uint32_t round = 0;; ++round) {
    if (round % 3 == 0) {
      if (!write_within(partition, *words, who, 1, 1)) continue;
      put_value(heap, object, *words, make_block(heap, 200), remote);
      unlock(partition, *words, false);
    } else if (const auto slot = read_within(partition, *words, who, 1, 1)) {
      const GlobalPointer value = current_value(partition, object, *words);
      if (!partition.find(value.address, value.colour).ok()) ::_exit(4);
      if (round % 3 == 1) {
        end_read(partition, *words, *slot);
      } else {
        begin_view(partition, *words, *slot, who, value.address);
        end_view(heap, object, *words, *slot, value, remote);
      }
    }
  }
}

// In a child: takes the lock as fast as it can, waiting where it must, and writes values back; never returns.
[[noreturn]] void contend(int memfd, const GlobalPointer& object, std::uint32_t point, std::uint32_t nth, int ready) {
  auto attached = heap::Partition::attach(memfd);
  if (!attached.ok()) ::_exit(2);
  heap::Partition& partition = *attached.value();
  const auto process = partition.claim_process(heap::ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
  if (!process.ok()) ::_exit(3);
  heap::Heap heap(partition, process.value());
  const Who who = Who::make(partition.server(), process.value());
  auto* words = find<LockWords>(partition, object);
  static_cast<void>(!::write(ready, &process.value(), sizeof process.value()));
  arm_kill_point(point, nth, KillAction::kill);
  std::vector<GlobalPointer> remote;
  for (;;) {
    if (!lock_within(partition, *words, who, 1, 1)) continue;
    const GlobalPointer value = make_block(heap, 200);
    put_value(heap, object, *words, value, remote);
    unlock(partition, *words, false);
    if (const auto more = heap::make_hold(heap, object, 0); more.ok()) static_cast<void>(heap.free(more.value(), remote));
    GlobalPointer own;
    if (const auto first = make<AtomicWords>(heap, Kind::integer, own); first.ok())
      static_cast<void>(heap.free(first.value(), remote));
  }
}

// What a contender gives up on, who waits for 1 ms: on a machine with a processor for each of them nobody else has the
// lock for that long. So every fourth time this process keeps it.
class Keeper {
 public:
  void keep() noexcept {
    if (++times_ % 4 != 0) return;
    const Deadline end = deadline_in(2);
    while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }

 private:
  std::uint32_t times_ = 0;
};

struct Child {
  pid_t pid;
  heap::ProcessId process;
};

using Contend = void (*)(int memfd, const GlobalPointer& object, std::uint32_t point, std::uint32_t nth, int ready);

// Two children contend, and die at that point; this process contends too, so that it is passed, and buries them.
template <typename Enter>
void outlive_two(Host& host, const GlobalPointer& object, LockWords& words, Contend contend, std::uint32_t point,
                 std::uint32_t nth, std::vector<GlobalPointer>& remote, Enter&& enter) {
  int ready[2];
  ensure(::pipe(ready) == 0, "no pipe");
  std::vector<Child> children;
  for (int index = 0; index < 2; ++index) {
    const pid_t pid = ::fork();
    if (pid == 0) contend(host.partition->memfd(), object, point, nth, ready[1]);
    Child child{pid, {}};
    ensure(::read(ready[0], &child.process, sizeof child.process) == sizeof child.process, "a child is not ready");
    children.push_back(child);
  }
  Keeper keeper;
  for (std::size_t left = children.size(); left > 0;) {
    if (enter()) {
      keeper.keep();
      unlock(*host.partition, words, false);
    }
    int status = 0;
    const pid_t ended = ::waitpid(-1, &status, WNOHANG);
    if (ended <= 0) continue;
    if (!CHECK(WIFSIGNALED(status))) std::printf("exit %d at %s %u\n", WEXITSTATUS(status), kKillPoints[point].data(), nth);
    --left;
    for (const Child& child : children) {
      if (child.pid != ended) continue;
      host.partition->declare_dead(child.process);
      const Who dead = Who::make(host.partition->server(), child.process);
      bury_everywhere(*host.heap, [dead](Who who) { return who == dead; }, child.process);
      host.heap->adopt(child.process, &remote);
      host.heap->free_owned_by(child.process, remote);
      host.partition->release_process(child.process);
    }
  }
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace

TEST("a kill at any step leaves a lock that the next one gets, a value, and nothing that nobody owns") {
  for (std::uint32_t point = 0; point < kKillPoints.size(); ++point) {
    if (!kKillPoints[point].starts_with("shared.") || kKillPoints[point].starts_with("shared.channel.") ||
        kKillPoints[point].starts_with("shared.read.") ||
        kKillPoints[point].starts_with("shared.dict.") ||
        kKillPoints[point].starts_with("shared.answer."))
      continue;
    for (const std::uint32_t nth : {1U, 7U}) {
      Host host;
      const std::uint64_t before = host.partition->live_blocks();
      Shared shared(host);
      std::vector<GlobalPointer> remote;
      put_value(*host.heap, shared.object, *shared.words, make_block(*host.heap, 200), remote);
      const Who me = Who::make(host.partition->server(), host.process);
      outlive_two(host, shared.object, *shared.words, contend, point, nth, remote,
                  [&] { return lock_within(*host.partition, *shared.words, me, 9, 1); });
      if (!CHECK(lock_within(*host.partition, *shared.words, me, 9, 1000))) std::printf("at %s\n", kKillPoints[point].data());
      const GlobalPointer value = current_value(*host.partition, shared.object, *shared.words);
      if (!CHECK(host.partition->find(value.address, value.colour).ok()))
        std::printf("no value at %s\n", kKillPoints[point].data());
      unlock(*host.partition, *shared.words, false);
      CHECK_EQ(shared.words->line.length(), 0U);
      CHECK(host.heap->free(shared.hold, remote).ok());
      static_cast<void>(sweep(host));
      if (!CHECK_EQ(host.partition->live_blocks(), before)) std::printf("left at %s\n", kKillPoints[point].data());
    }
  }
}

TEST("a kill at any step of a reader or a writer leaves a lock that the next one gets, a value, and nothing that nobody owns") {
  for (std::uint32_t point = 0; point < kKillPoints.size(); ++point) {
    if (!kKillPoints[point].starts_with("shared.lock.") && !kKillPoints[point].starts_with("shared.line.") &&
        !kKillPoints[point].starts_with("shared.value.") && !kKillPoints[point].starts_with("shared.read.")) continue;
    for (const std::uint32_t nth : {1U, 7U}) {
      Host host;
      const std::uint64_t before = host.partition->live_blocks();
      SharedBoth shared(host);
      std::vector<GlobalPointer> remote;
      put_value(*host.heap, shared.object, *shared.words, make_block(*host.heap, 200), remote);
      const Who me = Who::make(host.partition->server(), host.process);
      outlive_two(host, shared.object, *shared.words, contend_both, point, nth, remote,
                  [&] { return write_within(*host.partition, *shared.words, me, 9, 1); });
      if (!CHECK(write_within(*host.partition, *shared.words, me, 9, 1000))) std::printf("at %s\n", kKillPoints[point].data());
      const GlobalPointer value = current_value(*host.partition, shared.object, *shared.words);
      if (!CHECK(host.partition->find(value.address, value.colour).ok()))
        std::printf("no value at %s\n", kKillPoints[point].data());
      unlock(*host.partition, *shared.words, false);
      CHECK_EQ(shared.words->line.length(), 0U);
      CHECK(!shared.words->readers.has_reading());
      CHECK_EQ(shared.words->readers.viewing(), 0U);
      CHECK(host.heap->free(shared.hold, remote).ok());
      static_cast<void>(sweep(host));
      if (!CHECK_EQ(host.partition->live_blocks(), before)) std::printf("left at %s\n", kKillPoints[point].data());
    }
  }
}
#endif
