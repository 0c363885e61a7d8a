// Processes that are killed at any instruction leave a heap whose account is right.
//
// Children attach after the fork, allocate, publish, link and free at random (their own blocks and
// anybody's), and are killed in two ways: by the clock, and by single-stepping them a random number of
// instructions, which visits the few instructions between two shared words as often as a system call. What
// they leave is adopted and counted.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/kill_point.hpp"
#include "base/limits.hpp"
#include "heap/layout.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using test::block_at;
using test::Host;
using test::make_block;

#if DRUST_TEST_FORKS
namespace {

// One random operation after another, for ever. Nothing of it is recorded: the headers are the record.
[[noreturn]] void live(int memfd, std::uint32_t seed, int ready) {
  auto attached = Partition::attach(memfd);
  if (!attached.ok()) ::_exit(2);
  Partition& partition = *attached.value();
  const auto process = partition.claim_process(ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
  if (!process.ok()) ::_exit(3);
  Heap heap(partition, process.value());
  std::mt19937 random(seed);
  std::vector<GlobalPointer> mine;
  static_cast<void>(!::write(ready, "r", 1));
  if (seed % 2 == 0) test::die_in((seed >> 8) % 5000);
  const std::uint32_t stop_at = seed % 2 == 1 ? (seed >> 8) % (seed % 4 == 1 ? 10 : 400) : ~0U;
  for (std::uint32_t step = 0;; ++step) {
    const auto stop_here = [&] {
      if (step == stop_at) ::raise(SIGSTOP);  // the tracer goes on from here
    };
    if (seed % 4 == 1) {  // long runs only: most instructions lie between two entries of the segment table
      const GlobalPointer run = make_block(heap, 10'000'000);
      std::vector<GlobalPointer> remote;
      stop_here();
      static_cast<void>(heap.free(run, remote));
      continue;
    }
    stop_here();
    const std::uint64_t bytes = random() % 6 == 0 ? 65'000 + random() % 400'000 : random() % 5000;
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        if (const GlobalPointer made = make_block(heap, bytes); !made.is_null()) mine.push_back(made);
        break;
      case 3: {  // a tree of the last few
        std::vector<GlobalPointer> children;
        for (std::uint32_t count = random() % 4; count > 0 && !mine.empty(); --count) {
          children.push_back(mine.back());
          mine.pop_back();
        }
        const GlobalPointer root = make_block(heap, bytes, children);
        if (root.is_null()) break;
        for (const GlobalPointer& child : children)
          heap.set_owner(child, parent_word(root.address));
        mine.push_back(root);
        break;
      }
      case 4:
      case 5: {
        if (mine.empty()) break;
        const std::size_t which = random() % mine.size();
        std::vector<GlobalPointer> remote;
        static_cast<void>(heap.free(mine[which], remote));
        mine[which] = mine.back();
        mine.pop_back();
        break;
      }
      case 6:
        if (const auto address = heap.allocate_extent(64 + bytes); address.ok() && random() % 2 == 0) {
          heap.abandon(address.value());
        } else if (address.ok()) {
          mine.push_back(heap.publish(address.value()));
        }
        break;
      default: {  // somebody else's root goes
        if (step % 4 != 0) break;
        std::vector<GlobalPointer> roots;
        partition.each_live_block([&](const BlockInfo& block) {
          if (owner_kind(block.owner) == OwnerKind::process) roots.push_back(block.pointer);
        });
        std::vector<GlobalPointer> remote;
        if (!roots.empty()) static_cast<void>(heap.free(roots[random() % roots.size()], remote));
      }
    }
    if (mine.size() > 150) {
      std::vector<GlobalPointer> remote;
      for (const GlobalPointer& block : mine) static_cast<void>(heap.free(block, remote));
      mine.clear();
    }
  }
}

std::uint32_t seed_of(std::mt19937& random) { return static_cast<std::uint32_t>(random()); }

struct Child {
  pid_t pid = 0;
  int ready = -1;
};

Child start(const Partition& partition, std::uint32_t seed) {
  int ends[2];
  ensure(::pipe(ends) == 0, "no pipe");
  const pid_t pid = ::fork();
  ensure(pid >= 0, "no fork");
  if (pid == 0) {
    ::close(ends[0]);
    live(::dup(partition.memfd()), seed, ends[1]);
  }
  ::close(ends[1]);
  return {pid, ends[0]};
}

void wait_ready(const Child& child) {
  char byte = 0;
  CHECK_EQ(::read(child.ready, &byte, 1), 1);
  ::close(child.ready);
}

void take_over(Host& host, pid_t pid) {
  for (const ProcessInfo& info : host.partition->processes()) {
    if (info.pid != static_cast<std::uint32_t>(pid)) continue;
    host.partition->declare_dead(info.id);
    host.heap->adopt(info.id);
    host.partition->release_process(info.id);
  }
}

std::uint64_t backed_bytes(const Partition& partition) {
  struct stat file = {};
  ensure(::fstat(partition.memfd(), &file) == 0, "no fstat");
  return static_cast<std::uint64_t>(file.st_blocks) * 512;
}

// With every child dead and adopted: each live block hangs below exactly the roots, and when those are freed
// nothing is.
void settle_account(Host& host, std::uint64_t tables_bytes) {
  std::set<std::uint64_t> live_ones;
  std::vector<GlobalPointer> open;
  host.partition->each_live_block([&](const BlockInfo& block) {
    live_ones.insert(block.pointer.address.raw());
    if (owner_kind(block.owner) == OwnerKind::process) open.push_back(block.pointer);
  });
  const std::vector<GlobalPointer> roots = open;
  std::set<std::uint64_t> reached;
  while (!open.empty()) {
    const GlobalPointer pointer = open.back();
    open.pop_back();
    const auto found = host.partition->find(pointer.address, pointer.colour);
    if (!found.ok() || !reached.insert(pointer.address.raw()).second) continue;
    for (const ChildPointer& child : found.value().children()) open.push_back(child.pointer());
  }
  CHECK(reached == live_ones);
  std::vector<GlobalPointer> remote;
  for (const GlobalPointer& root : roots) static_cast<void>(host.heap->free(root, remote));
  CHECK_EQ(remote.size(), 0U);
  CHECK_EQ(host.partition->live_blocks(), 0U);
  host.heap->reclaim();
  CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
  CHECK_EQ(backed_bytes(*host.partition), tables_bytes + host.partition->usage().warm_bytes);
  host.partition->trim(0);
  CHECK_EQ(host.partition->usage().warm_bytes, 0U);
  CHECK_EQ(backed_bytes(*host.partition), tables_bytes);
}

}  // namespace

TEST("processes killed by the clock leave every live block reachable and nothing else") {
  Host host(48ULL << 20);
  const std::uint64_t tables_bytes = backed_bytes(*host.partition);
  std::mt19937 random(11);
  for (std::uint32_t round = 0; round < 30; ++round) {
    const Child first = start(*host.partition, seed_of(random) & ~1U);
    const Child second = start(*host.partition, seed_of(random) & ~1U);
    wait_ready(first);
    wait_ready(second);
    CHECK_EQ(::waitpid(first.pid, nullptr, 0), first.pid);
    take_over(host, first.pid);  // while the second may go on
    CHECK_EQ(::waitpid(second.pid, nullptr, 0), second.pid);
    take_over(host, second.pid);
    if (round % 3 == 2) settle_account(host, tables_bytes);
  }
}

TEST("a process killed after any number of instructions leaves the account right") {
  Host host(48ULL << 20);
  const std::uint64_t tables_bytes = backed_bytes(*host.partition);
  std::mt19937 random(12);
  // 24 rounds take two seconds; more are a matter of patience.
  const char* more = std::getenv("DRUST_TEST_ROUNDS");
  const int rounds = more != nullptr ? std::atoi(more) : 24;
  for (int round = 0; round < rounds; ++round) {
    const Child child = start(*host.partition, (seed_of(random) & ~1U) | 1U);
    wait_ready(child);
    int status = 0;
    CHECK_EQ(::waitpid(child.pid, &status, WUNTRACED), child.pid);
    if (::ptrace(PTRACE_SEIZE, child.pid, nullptr, nullptr) !=
        0) {  // not allowed here: the clock alone must do
      ::kill(child.pid, SIGKILL);
      ::waitpid(child.pid, nullptr, 0);
      take_over(host, child.pid);
      std::printf("      no ptrace on this machine: skipped\n");
      return;
    }
    ::kill(child.pid, SIGCONT);
    CHECK_EQ(::waitpid(child.pid, &status, 0), child.pid);
    for (std::uint64_t left = random() % 3000; left > 0; --left) {
      if (::ptrace(PTRACE_SINGLESTEP, child.pid, nullptr, nullptr) != 0) break;
      if (::waitpid(child.pid, &status, 0) != child.pid || !WIFSTOPPED(status)) break;
    }
    CHECK(WIFSTOPPED(status));
    ::kill(child.pid, SIGKILL);
    CHECK_EQ(::waitpid(child.pid, &status, 0), child.pid);
    take_over(host, child.pid);
    settle_account(host, tables_bytes);
  }
}

TEST("a forked child finds no heap, and ends without touching it") {
  Host host;
  const GlobalPointer block = make_block(*host.heap, 100);
  const pid_t pid = ::fork();
  if (pid == 0) {
    unsigned char residency = 0;  // mincore() fails where nothing is mapped
    const auto page =
        reinterpret_cast<std::uintptr_t>(host.partition->writable(block.address.offset_bytes())) & ~4095ULL;
    const bool gone = ::mincore(reinterpret_cast<void*>(page), 4096, &residency) != 0;
    host.heap.reset();
    host.partition.reset();
    ::_exit(gone ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(host.partition->find(block.address, block.colour).ok());
}
#endif

TEST(
    "frees of others' blocks that a dead process had begun are finished, with the children where they go "
    "along") {
  Host host;
  const ProcessId second = host.join();
  Heap third(*host.partition, host.join());
  const GlobalPointer elsewhere{Address::make(9, 64), (1ULL << 48) | 5, 128};
  const GlobalPointer small = make_block(*host.heap, 10, {make_block(*host.heap, 200'000), elsewhere});
  const GlobalPointer large = make_block(*host.heap, 200'000, {make_block(*host.heap, 10)});
  const GlobalPointer kept = make_block(*host.heap, 10);
  const GlobalPointer shallow = make_block(*host.heap, 200'000, {kept});
  // Where free() stands when it is killed behind its first step.
  for (const GlobalPointer& tree : {small, large})
    block_at(*host.partition, tree.address).header().state = freeing(second);
  block_at(*host.partition, shallow.address).header().state = filling(second);
  auto* slots = reinterpret_cast<ProcessSlot*>(host.partition->writable(kProcessesOffset));
  slots[second.slot].frees_open.store(3);
  host.partition->declare_dead(second);
  std::vector<GlobalPointer> remote;
  third.adopt(second, &remote);
  CHECK_EQ(host.partition->live_blocks(), 1U);
  CHECK(host.partition->find(kept.address, kept.colour).ok());
  if (CHECK_EQ(remote.size(), 1U)) CHECK(remote[0] == elsewhere);
  CHECK_EQ(slots[second.slot].frees_open.load(), 0U);
  host.heap->reclaim();
  third.reclaim();
  CHECK_EQ(host.partition->usage().claimed_bytes, kSegmentBytes);
}

TEST(
    "counters that a killed process left wrong are put right as soon as nobody is in the middle of an "
    "operation") {
  Host host;
  const ProcessId second = host.join();
  const ProcessId third = host.join();
  CHECK(!make_block(*host.heap, 300'000).is_null());
  auto& shared = *reinterpret_cast<SharedHeader*>(host.partition->writable(0));
  auto* slots = reinterpret_cast<ProcessSlot*>(host.partition->writable(kProcessesOffset));
  const Usage right = host.partition->usage();
  // As if `second` had been killed between counter and table, and `third` were just now between the two.
  shared.claimed_segments.fetch_add(3);
  shared.warm_segments.fetch_sub(2);
  slots[second.slot].ops_started.fetch_add(1);
  slots[third.slot].ops_started.fetch_add(1);
  host.partition->declare_dead(second);
  host.heap->adopt(second);
  CHECK(host.partition->usage().claimed_bytes != right.claimed_bytes);
  slots[third.slot].ops_finished.fetch_add(1);
  host.partition->trim(1ULL << 40);
  CHECK_EQ(host.partition->usage().claimed_bytes, right.claimed_bytes);
  CHECK_EQ(host.partition->usage().warm_bytes, right.warm_bytes);
}

TEST("a word of a parent that is gone gives no child to a process that dies filling a block in its place") {
  Host host;
  const ProcessId second = host.join();
  Heap dying(*host.partition, second);
  const GlobalPointer child = make_block(*host.heap, 10);
  const auto fill = [&](std::uint64_t flags) {
    const auto address = dying.allocate({.codec = 9, .child_count = 1, .buffer_bytes = {}});
    ensure(address.ok(), "no room");
    block_at(*host.partition, address.value()).children()[0] = {child.address.raw(), child.colour, 128, flags};
    return address.value();
  };
  // A completion, say: it goes alone when its copy has arrived, and its child lives on.
  const Address gone = fill(0);
  dying.adopt_children(gone);
  CHECK(dying.free_shallow(dying.publish(gone)).ok());
  CHECK_EQ(block_at(*host.partition, child.address).header().owner.load(), parent_word(gone));
  // A block received there, which names the child without owning it.
  CHECK(fill(0) == gone);
  host.partition->declare_dead(second);
  host.heap->adopt(second);
  std::vector<GlobalPointer> remote;
  CHECK_EQ(host.heap->free_owned_by(second, remote), 0U);
  CHECK(host.partition->find(child.address, child.colour).ok());
}

#if DRUST_TEST_FORKS
TEST("a block that a process had just taken when it died does not stand for the parent that lay there before") {
  Host host;
  const GlobalPointer child = make_block(*host.heap, 10);
  const pid_t pid = ::fork();
  ensure(pid >= 0, "no fork");
  if (pid == 0) {
    auto attached = Partition::attach(::dup(host.partition->memfd()));
    const auto process = attached.value()->claim_process(ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
    Heap dying(*attached.value(), process.value());
    const BlockShape shape = {.codec = 9, .child_count = 1, .buffer_bytes = {}};
    const Address parent = dying.allocate(shape).value();
    block_at(*attached.value(), parent).children()[0] = {child.address.raw(), child.colour, 128, 0};
    dying.adopt_children(parent);
    static_cast<void>(dying.free_shallow(dying.publish(parent)));  // alone: its child lives on
    arm_kill_point(KillPoint("heap.take.after").index(), 1, KillAction::kill);
    static_cast<void>(dying.allocate(shape));
    ::_exit(1);
  }
  int status = 0;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  CHECK(WIFSIGNALED(status));
  for (const ProcessInfo& info : host.partition->processes()) {
    if (info.pid != static_cast<std::uint32_t>(pid)) continue;
    host.partition->declare_dead(info.id);
    host.heap->adopt(info.id);
    std::vector<GlobalPointer> remote;
    CHECK_EQ(host.heap->free_owned_by(info.id, remote), 0U);
  }
  CHECK(host.partition->find(child.address, child.colour).ok());
}
#endif

TEST("children of a parent that was never published are its process's again, those it only borrows are not") {
  Host host;
  const ProcessId second = host.join();
  Heap dying(*host.partition, second);
  const std::vector<GlobalPointer> children = {make_block(dying, 10), make_block(dying, 10), make_block(dying, 10)};
  const auto parent = dying.allocate({.codec = 9, .child_count = 3, .buffer_bytes = {}});
  const auto table = block_at(*host.partition, parent.value()).children();
  const std::array<std::uint64_t, 3> flags = {0, ChildPointer::kShared, ChildPointer::kKept};
  for (std::size_t index = 0; index < children.size(); ++index) {
    table[index] = {children[index].address.raw(), children[index].colour, 128, flags[index]};
    CHECK(host.heap->set_owner(children[index], owner_word(OwnerKind::none, {})));
  }
  // What an older parent at this place has left behind.
  CHECK(host.heap->set_owner(children[1], parent_word(parent.value())));
  dying.adopt_children(parent.value());
  host.partition->declare_dead(second);
  host.heap->adopt(second);
  std::vector<GlobalPointer> remote;
  CHECK_EQ(host.heap->free_owned_by(second, remote), 1U);
  CHECK(!host.partition->find(children[0].address, children[0].colour).ok());
  CHECK(host.partition->find(children[1].address, children[1].colour).ok());
  CHECK(host.partition->find(children[2].address, children[2].colour).ok());
}
