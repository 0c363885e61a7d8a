// Shared objects: how long they live, the lock word against every small case, and the lock between threads.
#include <csignal>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/kill_point.hpp"
#include "heap/shared.hpp"
#include "sync/atomic.hpp"
#include "sync/bury.hpp"
#include "sync/lock.hpp"
#include "test/harness.hpp"
#include "test/shared_fixture.hpp"

using namespace drust;
using namespace drust::sync;
using namespace drust::test;

TEST("an object that only one hold ever named goes with it at once") {
  Host host;
  const std::uint64_t before = host.partition->live_blocks();
  const Shared shared(host);
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free(shared.hold, remote).ok());
  CHECK_EQ(host.partition->live_blocks(), before);
}

TEST("an object lives while any hold names it, and is freed by the look after the last") {
  Host host;
  const std::uint64_t before = host.partition->live_blocks();
  const Shared shared(host);
  const auto second = heap::make_hold(*host.heap, shared.object, 0);
  if (!CHECK(second.ok())) return;
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free(shared.hold, remote).ok());
  CHECK_EQ(sweep(host), 0U);
  CHECK(find<LockWords>(*host.partition, shared.object) != nullptr);
  CHECK(host.heap->free(second.value(), remote).ok());
  CHECK_EQ(sweep(host), 1U);
  CHECK_EQ(host.partition->live_blocks(), before);
  CHECK_EQ(sweep(host), 0U);
}

TEST("a hold inside a block that is freed counts no longer, and one that is handed on does") {
  Host host;
  const Shared shared(host);
  const auto second = heap::make_hold(*host.heap, shared.object, 0);
  const GlobalPointer call = make_block(*host.heap, 64, {second.value()});
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free(shared.hold, remote).ok());
  CHECK_EQ(sweep(host), 0U);
  CHECK(host.heap->free(call, remote).ok());
  CHECK_EQ(sweep(host), 1U);
}

TEST("what a dead process held is given back by its reaper") {
  Host host;
  const std::uint64_t before = host.partition->live_blocks();
  const heap::ProcessId other = host.join();
  {
    heap::Heap theirs(*host.partition, other);
    GlobalPointer object;
    CHECK(make<LockWords>(theirs, Kind::mutex, object, LockWords::kChildren).ok());
    const auto second = heap::make_hold(theirs, object, 0);
    CHECK(second.ok());
    host.partition->declare_dead(other);
  }
  std::vector<GlobalPointer> remote;
  host.heap->adopt(other, &remote);
  host.heap->free_owned_by(other, remote);
  CHECK_EQ(sweep(host), 1U);
  CHECK_EQ(host.partition->live_blocks(), before);
}

TEST("the lock word: every event from every small state keeps its promises") {
  const Who a = Who::make(1, {2, 3});
  const Who b = Who::make(4, {5, 6});
  std::vector<LockWord> words = {LockWord()};
  for (int round = 0; round < 3; ++round) {
    const std::vector<LockWord> now = words;
    for (const LockWord word : now) {
      if (const auto taken = word.take(a)) {
        CHECK(word.who().is_nobody());
        CHECK(taken->who() == a);
        CHECK(!taken->place().has_value());
        words.push_back(*taken);
      } else {
        CHECK(!word.who().is_nobody());
      }
      CHECK(word.queue_up().has_line());
      CHECK(word.queue_up() != word);
      CHECK(word.leave() != word);
      CHECK(word.leave().who() == word.who());
      for (const bool poisons : {false, true}) {
        const LockWord handed = word.hand_over(b, 31, poisons);
        CHECK(handed.was_given(b, 31));
        CHECK(!handed.was_given(b, 30));
        CHECK_EQ(handed.is_poisoned(), poisons || word.is_poisoned());
        CHECK(!handed.enter().place().has_value());
        CHECK(handed.enter().who() == b);
        const LockWord free = word.give_back(poisons);
        CHECK(free.who().is_nobody());
        CHECK(!free.has_line());
        CHECK_EQ(free.is_poisoned(), poisons || word.is_poisoned());
        CHECK(!free.cleared().is_poisoned());
        words.push_back(handed);
        words.push_back(free);
      }
      words.push_back(word.queue_up());
    }
  }
  CHECK(words.size() > 100);
}

TEST("one thread at a time has the lock, whoever waits, gives up or comes back") {
  Host host;
  Shared shared(host);
  constexpr int kThreads = 6;
  constexpr int kRounds = 3000;
  std::uint64_t guarded = 0;  // by the lock alone: the thread sanitizer looks
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int index = 0; index < kThreads; ++index) {
    threads.emplace_back([&, index] {
      const Who who = Who::make(host.partition->server(), {static_cast<std::uint32_t>(index / 2), 1});
      for (int round = 0; round < kRounds; ++round) {
        const std::uint32_t wait_ms = round % 7 == 0 ? 0 : 10'000;
        if (!lock_within(*host.partition, *shared.words, who, static_cast<std::uint64_t>(index), wait_ms)) continue;
        ++guarded;
        taken.fetch_add(1);
        unlock(*host.partition, *shared.words, false);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(guarded, static_cast<std::uint64_t>(taken.load()));
  CHECK(guarded >= kThreads * kRounds * 6 / 7);
  CHECK(look(*shared.words).who().is_nobody());
  CHECK_EQ(shared.words->line.length(), 0U);
}

TEST("the lock is handed over in the order in which it was asked for") {
  Host host;
  Shared shared(host);
  const auto process = [&](std::uint32_t slot) { return Who::make(host.partition->server(), {slot, 1}); };
  CHECK(try_lock(*shared.words, process(0)));
  std::vector<Queued> places;
  for (std::uint32_t slot = 1; slot <= 5; ++slot) places.push_back(queue_up(*shared.words, process(slot), slot));
  CHECK(!give_up(*host.partition, *shared.words, process(2), places[1].place));
  for (const std::uint32_t slot : {1U, 3U, 4U, 5U}) {
    unlock(*host.partition, *shared.words, false);
    CHECK(!try_lock(*shared.words, process(9)));  // nobody gets in between
    for (std::uint32_t other = 1; other <= 5; ++other) {
      if (other != slot && other != 2) CHECK(!has_entered(*shared.words, process(other), places[other - 1].place));
    }
    CHECK(has_entered(*shared.words, process(slot), places[slot - 1].place));
  }
  unlock(*host.partition, *shared.words, false);
  CHECK(look(*shared.words).who().is_nobody());
}

TEST("who gives up just when his turn comes has the lock") {
  Host host;
  Shared shared(host);
  const Who first = Who::make(3, {0, 1});
  const Who second = Who::make(3, {1, 1});
  CHECK(try_lock(*shared.words, first));
  const Queued queued = queue_up(*shared.words, second, 1);
  unlock(*host.partition, *shared.words, false);
  CHECK(give_up(*host.partition, *shared.words, second, queued.place));
  CHECK(look(*shared.words).who() == second);
}

TEST("a line that is full says so, and takes the next one when somebody leaves") {
  Host host;
  Shared shared(host);
  const Who who = Who::make(3, {0, 1});
  CHECK(try_lock(*shared.words, who));
  for (std::uint32_t count = 0; count < kWaitersMax; ++count) {
    const bool waits = queue_up(*shared.words, who, count).met == Met::waiting;
    CHECK(waits);
  }
  const bool is_crowded = queue_up(*shared.words, who, 99).met == Met::crowded;
  CHECK(is_crowded);
  CHECK(shared.words->line.wait_for_place(deadline_in(0)) == Wake::timed_out);
  CHECK(!give_up(*host.partition, *shared.words, who, 7));
  CHECK_EQ(queue_up(*shared.words, who, 99).place, 7U);
}

TEST("a holder that dies poisons, a chosen waiter that dies does not, a dead waiter is passed over") {
  Host host;
  Shared shared(host);
  const auto process = [&](std::uint32_t slot) { return Who::make(host.partition->server(), {slot, 1}); };
  const auto bury_slot = [&](std::uint32_t slot) {
    bury_everywhere(*host.heap, [&](Who who) { return who == process(slot); });
  };
  CHECK(try_lock(*shared.words, process(0)));
  std::vector<Queued> places;
  for (std::uint32_t slot = 1; slot <= 4; ++slot) places.push_back(queue_up(*shared.words, process(slot), slot));
  bury_slot(1);
  unlock(*host.partition, *shared.words, false);
  CHECK(look(*shared.words).was_given(process(2), places[1].place));
  bury_slot(2);  // chosen, and dead before it entered
  CHECK(look(*shared.words).was_given(process(3), places[2].place));
  CHECK(!look(*shared.words).is_poisoned());
  CHECK(has_entered(*shared.words, process(3), places[2].place));
  bury_slot(3);
  CHECK(look(*shared.words).was_given(process(4), places[3].place));
  CHECK(look(*shared.words).is_poisoned());
  CHECK(has_entered(*shared.words, process(4), places[3].place));
  clear_poison(*shared.words);
  unlock(*host.partition, *shared.words, false);
  CHECK(!look(*shared.words).is_poisoned());
  CHECK(look(*shared.words).who().is_nobody());
}

TEST("a value that is written back takes the place of the one before, which is freed") {
  Host host;
  Shared shared(host);
  const std::uint64_t before = host.partition->live_blocks();
  std::vector<GlobalPointer> remote;
  for (int round = 0; round < 5; ++round) {
    const GlobalPointer value = make_block(*host.heap, 100);
    put_value(*host.heap, shared.object, *shared.words, value, remote);
    CHECK(current_value(*host.partition, shared.object, *shared.words) == value);
    CHECK_EQ(host.partition->live_blocks(), before + 1);
  }
  CHECK_EQ(shared.words->value.version.load(), 5U);
  CHECK(host.heap->free(shared.hold, remote).ok());
  CHECK_EQ(host.partition->live_blocks(), before - 2);
}
