// The copy table: one fetch a version, pins, eviction, and what dead processes leave. Two heaps play two
// processes.
#include <atomic>
#include <random>
#include <signal.h>
#include <sys/wait.h>
#include <thread>

#include "base/limits.hpp"
#include "cache/copies.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using cache::Acquired;
using cache::Copies;
using test::Host;
using test::make_block;

namespace {

// A version on another server.
GlobalPointer version(std::uint64_t number, std::uint64_t colour = 1) {
  return {Address::make(8, 4096 + 64 * number), (5ULL << 48) | colour, 1000};
}

// Acquires, and fetches if it has to.
Result<Acquired> fetched(Copies& copies, heap::Heap& heap, const GlobalPointer& remote,
                         std::uint64_t bytes = 500) {
  Result<Acquired> got = copies.acquire(remote, 2000);
  if (!got.ok() || !got.value().is_leader) return got;
  const GlobalPointer local = make_block(heap, bytes);
  copies.publish(got.value().entry, local);
  return Acquired{true, got.value().entry, local};
}

struct Second {
  ProcessId process;
  heap::Heap heap;
  Copies copies;
  explicit Second(Host& host) : process(host.join()), heap(*host.partition, process), copies(heap) {}
};

}  // namespace

TEST("the first reader of a version fetches it and the others find the same copy") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  const auto first = copies.acquire(version(1), 100);
  if (!CHECK(first.ok() && first.value().is_leader)) return;
  CHECK(second.copies.acquire(version(1), 0).status().code() ==
        Code::timed_out);  // its bytes have not arrived
  const GlobalPointer local = make_block(*host.heap, 100);
  copies.publish(first.value().entry, local);
  const auto other = second.copies.acquire(version(1), 0);
  if (!CHECK(other.ok())) return;
  CHECK(!other.value().is_leader);
  CHECK(other.value().local == local);
  CHECK_EQ(copies.entries(), 1U);
  CHECK_EQ(copies.pinned(), 1U);
  const auto found = host.partition->find(local.address, local.colour);
  CHECK(owner_kind(found.value().header().owner.load()) == OwnerKind::copy);
}

TEST("another colour of the same address is another version") {
  Host host;
  Copies copies(*host.heap);
  CHECK(fetched(copies, *host.heap, version(1, 1)).ok());
  const auto later = copies.acquire(version(1, 2), 0);
  CHECK(later.ok() && later.value().is_leader);
  copies.abandon(later.value().entry);
  CHECK_EQ(copies.entries(), 1U);
}

TEST("an abandoned fetch is taken up by whoever asks next") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  const auto first = copies.acquire(version(1), 0);
  std::atomic<bool> led{false};
  std::thread waiter([&] {
    const auto got = second.copies.acquire(version(1), 2000);
    led = got.ok() && got.value().is_leader;
    second.copies.abandon(got.value().entry);
  });
  copies.abandon(first.value().entry);
  waiter.join();
  CHECK(led.load());
  CHECK_EQ(copies.entries(), 0U);
}

TEST("a pinned copy is not evicted, an unpinned one is, the one acquired longest ago first") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  std::vector<Acquired> held;
  for (std::uint64_t number = 0; number < 4; ++number)
    held.push_back(fetched(copies, *host.heap, version(number)).value());
  for (const Acquired& copy : held) CHECK(second.copies.acquire(version(0), 0).ok() || copy.is_leader);
  for (const Acquired& copy : held) copies.release(copy.entry);
  CHECK_EQ(copies.pinned(), 1U);  // by the second, several times
  CHECK(copies.acquire(version(1), 0).ok());
  copies.release(held[1].entry);
  CHECK(copies.evict(1) > 0);
  CHECK(copies.acquire(version(2), 0).value().is_leader);  // the oldest nobody pins
  CHECK(!copies.acquire(version(3), 0).value().is_leader);
  copies.release(held[3].entry);
  CHECK(copies.evict(1ULL << 40) > 0);
  CHECK_EQ(copies.entries(), 1U);
  CHECK(host.partition->find(held[0].local.address, held[0].local.colour).ok());
  CHECK(!host.partition->find(held[1].local.address, held[1].local.colour).ok());
}

TEST("a version is forgotten when ownership of it comes here, unless somebody reads it") {
  Host host;
  Copies copies(*host.heap);
  const auto got = fetched(copies, *host.heap, version(1));
  copies.forget(version(1));
  CHECK_EQ(copies.entries(), 1U);
  copies.release(got.value().entry);
  copies.forget(version(2));
  CHECK_EQ(copies.entries(), 1U);
  copies.forget(version(1));
  CHECK_EQ(copies.entries(), 0U);
  CHECK_EQ(host.partition->live_blocks(), 0U);
}

TEST("a dead process's pins and unfinished fetches go, the others' stay") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  const auto shared = fetched(copies, *host.heap, version(1));
  CHECK(second.copies.acquire(version(1), 0).ok());
  CHECK(fetched(second.copies, second.heap, version(2)).ok());
  CHECK(second.copies.acquire(version(3), 0).value().is_leader);
  CHECK_EQ(copies.pinned(), 2U);
  host.partition->declare_dead(second.process);
  copies.reap(second.process);
  CHECK_EQ(copies.pinned(), 1U);
  CHECK(copies.acquire(version(3), 0).value().is_leader);
  CHECK(copies.evict(1ULL << 40) > 0);
  CHECK_EQ(copies.entries(), 1U);
  copies.release(shared.value().entry);
}

TEST("the entries that a dead process had taken serve other versions once it is reaped") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  for (std::uint64_t number = 0; number < 40'000; ++number) {
    const auto got = second.copies.acquire(version(number), 0);
    CHECK(got.ok() || got.status().code() == Code::full);
  }
  const auto refusals = [&](std::uint64_t first) {
    int refused = 0;
    for (std::uint64_t number = first; number < first + 100; ++number) {
      const auto got = copies.acquire(version(number), 0);
      if (got.ok())
        copies.abandon(got.value().entry);
      else
        refused += got.status().code() == Code::full ? 1 : 0;
    }
    return refused;
  };
  CHECK(refusals(50'000) > 0);
  host.partition->declare_dead(second.process);
  copies.reap(second.process);
  CHECK_EQ(refusals(60'000), 0);
}

TEST("a waiter takes over from a leader that died, without anybody reaping") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  CHECK(second.copies.acquire(version(1), 0).value().is_leader);
  host.partition->declare_dead(second.process);
  const auto got = copies.acquire(version(1), 0);
  CHECK(got.ok() && got.value().is_leader);
}

TEST("a full neighbourhood makes room by evicting, and says full when all of it is pinned") {
  Host host(256ULL << 20);
  Copies copies(*host.heap);
  std::uint64_t refused = 0;
  std::vector<std::uint32_t> pinned;
  for (std::uint64_t number = 0; number < 40'000; ++number) {
    const auto got = fetched(copies, *host.heap, version(number), 10);
    if (got.ok())
      pinned.push_back(got.value().entry);
    else if (CHECK(got.status().code() == Code::full))
      ++refused;
  }
  CHECK(refused >= 40'000 - kCopiesMax);
  CHECK(pinned.size() > kCopiesMax * 8 / 10);  // long before that, hardly anything is refused
  for (const std::uint32_t entry : pinned) copies.release(entry);
  for (std::uint64_t number = 40'000; number < 42'000; ++number) {
    const auto got = fetched(copies, *host.heap, version(number), 10);
    if (CHECK(got.ok())) copies.release(got.value().entry);
  }
  CHECK_EQ(copies.entries(), host.partition->live_blocks());
}

TEST("a closed partition ends the wait for a fetch") {
  Host host;
  Copies copies(*host.heap);
  Second second(host);
  CHECK(copies.acquire(version(1), 0).value().is_leader);
  std::thread closer([&] { host.partition->close(); });
  CHECK(second.copies.acquire(version(1), 5000).status().code() == Code::closed);
  closer.join();
}

TEST(
    "many readers, evictions and reads at once: every pinned copy is whole and each version is fetched once "
    "at a time") {
  Host host(32ULL << 20);
  Copies first(*host.heap);
  Second second(host);
  std::atomic<int> leaders[6] = {};
  std::vector<std::thread> threads;
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      Copies& copies = seed % 2 == 0 ? first : second.copies;
      heap::Heap& heap = seed % 2 == 0 ? *host.heap : second.heap;
      std::mt19937 random(seed);
      for (int step = 0; step < 10'000; ++step) {
        const std::uint32_t number = static_cast<std::uint32_t>(random() % 6);
        if (random() % 4 == 0) copies.evict(1 + random() % 2000);
        const auto got = copies.acquire(version(number), 5000);
        if (!CHECK(got.ok())) return;
        if (got.value().is_leader) {
          CHECK_EQ(leaders[number].fetch_add(1), 0);
          const GlobalPointer local = make_block(heap, 400 + number);
          leaders[number].fetch_sub(1);
          if (random() % 8 == 0) {
            CHECK(heap.free_shallow(local).ok());
            copies.abandon(got.value().entry);
            continue;
          }
          copies.publish(got.value().entry, local);
        } else {
          const auto found = host.partition->find(got.value().local.address, got.value().local.colour);
          if (CHECK(found.ok())) CHECK_EQ(found.value().header().value_bytes, 400 + number);
        }
        copies.release(got.value().entry);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(first.pinned(), 0U);
  CHECK_EQ(first.entries(), host.partition->live_blocks());
  first.evict(1ULL << 40);
  CHECK_EQ(host.partition->live_blocks(), 0U);
}

#if DRUST_TEST_FORKS
TEST("readers killed at any moment leave no pin, no half copy and no block behind") {
  Host host(32ULL << 20);
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    int ends[2];
    ensure(::pipe(ends) == 0, "no pipe");
    const auto seed = static_cast<std::uint32_t>(random());
    const auto after = static_cast<std::uint32_t>(random() % 3000);
    const pid_t pid = ::fork();
    if (pid == 0) {
      auto attached = Partition::attach(::dup(host.partition->memfd()));
      const auto process =
          attached.value()->claim_process(ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
      heap::Heap heap(*attached.value(), process.value());
      Copies copies(heap);
      std::mt19937 mine(seed);
      static_cast<void>(!::write(ends[1], "r", 1));
      test::die_in(after);
      while (true) {
        const auto got = fetched(copies, heap, version(mine() % 200), mine() % 70'000);
        if (mine() % 4 == 0) copies.evict(mine() % 300'000);
        if (got.ok() && mine() % 8 != 0) copies.release(got.value().entry);
      }
    }
    char byte = 0;
    CHECK_EQ(::read(ends[0], &byte, 1), 1);
    ::close(ends[0]);
    ::close(ends[1]);
    CHECK_EQ(::waitpid(pid, nullptr, 0), pid);
    Copies copies(*host.heap);
    for (const ProcessInfo& info : host.partition->processes()) {
      if (info.pid != static_cast<std::uint32_t>(pid)) continue;
      host.partition->declare_dead(info.id);
      copies.reap(info.id);
      host.heap->adopt(info.id);
      std::vector<GlobalPointer> remote;
      host.heap->free_owned_by(info.id, remote);
      host.partition->release_process(info.id);
    }
    CHECK_EQ(copies.pinned(), 0U);
    CHECK_EQ(copies.entries(), host.partition->live_blocks());
    for (std::uint64_t number = 0; number < 200; ++number) {  // every version can be had
      const auto got = fetched(copies, *host.heap, version(number));
      if (CHECK(got.ok())) copies.release(got.value().entry);
    }
    copies.evict(1ULL << 40);
    CHECK_EQ(host.partition->live_blocks(), 0U);
  }
  host.heap->reclaim();
  CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
}
#endif

TEST("a copy that is there is acquired and released in well under a microsecond") {
  Host host;
  Copies copies(*host.heap);
  const auto got = fetched(copies, *host.heap, version(1));
  copies.release(got.value().entry);
  constexpr int kRounds = 100'000;
  const auto start = std::chrono::steady_clock::now();
  for (int round = 0; round < kRounds; ++round) copies.release(copies.acquire(version(1), 0).value().entry);
  const auto took = std::chrono::steady_clock::now() - start;
  const double nanoseconds = std::chrono::duration<double, std::nano>(took).count() / kRounds;
  std::printf("      acquire + release of a copy: %.0f ns\n", nanoseconds);
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  CHECK(nanoseconds < 3000);
#endif
}
