// A RwLock between threads: who is inside with whom, in which order, and what the dead and the views leave.
#include <atomic>
#include <thread>
#include <vector>

#include "base/limits.hpp"
#include "sync/bury.hpp"
#include "test/harness.hpp"
#include "test/shared_fixture.hpp"

using namespace drust;
using namespace drust::sync;
using namespace drust::test;

TEST("readers are inside together, a writer alone, whoever waits, gives up or comes back") {
  Host host;
  SharedBoth shared(host);
  constexpr int kThreads = 6;
  constexpr int kRounds = 2000;
  std::uint64_t guarded = 0;  // by the lock alone: the thread sanitizer looks
  std::atomic<std::uint64_t> written{0};
  std::atomic<int> inside{0};
  std::atomic<int> together{0};
  std::atomic<bool> was_mixed{false};
  std::vector<std::thread> threads;
  for (int index = 0; index < kThreads; ++index) {
    threads.emplace_back([&, index] {
      const Who who = Who::make(host.partition->server(), {static_cast<std::uint32_t>(index / 2), 1});
      const auto token = static_cast<std::uint64_t>(index) + 1;
      for (int round = 0; round < kRounds; ++round) {
        const std::uint32_t wait_ms = round % 7 == 0 ? 0 : 10'000;
        if ((round + index) % 3 == 0) {
          if (!write_within(*host.partition, *shared.words, who, token, wait_ms)) continue;
          if (inside.load() != 0) was_mixed.store(true);
          ++guarded;
          written.fetch_add(1);
          unlock(*host.partition, *shared.words, false);
        } else {
          const auto slot = read_within(*host.partition, *shared.words, who, token, wait_ms);
          if (!slot) continue;
          const std::uint64_t seen = guarded;
          if (inside.fetch_add(1) > 0) together.fetch_add(1);
          std::this_thread::yield();
          if (seen != guarded) was_mixed.store(true);
          inside.fetch_sub(1);
          end_read(*host.partition, *shared.words, *slot);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(!was_mixed.load());
  CHECK(together.load() > 0);
  CHECK_EQ(guarded, written.load());
  CHECK(look(*shared.words).who().is_nobody());
  CHECK_EQ(shared.words->line.length(), 0U);
  CHECK(!shared.words->readers.has_reading());
}

TEST("a reader that comes after a waiting writer waits behind it; those behind it enter together") {
  Host host;
  SharedBoth shared(host);
  const auto process = [&](std::uint32_t slot) { return Who::make(host.partition->server(), {slot, 1}); };
  const auto inside = try_read(*host.partition, *shared.words, process(0), 1);
  if (!CHECK(inside.has_value())) return;
  const Queued writer = queue_up(*shared.words, process(1), 1);
  CHECK(writer.met == Met::waiting);
  std::vector<QueuedToRead> readers;
  for (std::uint32_t slot = 2; slot < 5; ++slot) {
    CHECK(!try_read(*host.partition, *shared.words, process(slot), slot));
    readers.push_back(queue_to_read(*host.partition, *shared.words, process(slot), slot));
    CHECK(readers.back().met == Met::waiting);
  }
  CHECK(!has_entered(*shared.words, process(1), writer.place));  // a reader is inside
  end_read(*host.partition, *shared.words, *inside);
  for (std::uint32_t slot = 2; slot < 5; ++slot)
    CHECK(!has_entered_to_read(*host.partition, *shared.words, process(slot), readers[slot - 2].place, slot));
  CHECK(has_entered(*shared.words, process(1), writer.place));
  unlock(*host.partition, *shared.words, false);
  std::vector<std::uint32_t> slots;
  for (std::uint32_t slot = 2; slot < 5; ++slot) {
    const auto entered = has_entered_to_read(*host.partition, *shared.words, process(slot), readers[slot - 2].place, slot);
    if (CHECK(entered.has_value())) slots.push_back(*entered);
  }
  CHECK(look(*shared.words).who().is_nobody());
  for (const std::uint32_t slot : slots) end_read(*host.partition, *shared.words, slot);
  CHECK(try_write(*host.partition, *shared.words, process(1)));
}

TEST("a writer that gives up at the gate lets the readers behind it in") {
  Host host;
  SharedBoth shared(host);
  const Who first = Who::make(3, {0, 1});
  const Who second = Who::make(3, {1, 1});
  const auto inside = try_read(*host.partition, *shared.words, first, 1);
  if (!CHECK(inside.has_value())) return;
  const Queued writer = queue_up(*shared.words, second, 2);
  const QueuedToRead reader = queue_to_read(*host.partition, *shared.words, first, 3);
  CHECK(!give_up(*host.partition, *shared.words, second, writer.place));
  CHECK(has_entered_to_read(*host.partition, *shared.words, first, reader.place, 3).has_value());
  CHECK(!look(*shared.words).is_poisoned());
}

TEST("as many readers as there are slots are inside, the next one waits for one that leaves") {
  Host host;
  SharedBoth shared(host);
  const Who who = Who::make(3, {0, 1});
  std::vector<std::uint32_t> slots;
  for (std::uint32_t count = 0; count < kReadersMax; ++count) {
    const auto slot = try_read(*host.partition, *shared.words, who, count + 1);
    if (CHECK(slot.has_value())) slots.push_back(*slot);
  }
  CHECK(!try_read(*host.partition, *shared.words, who, 1000));
  const QueuedToRead late = queue_to_read(*host.partition, *shared.words, who, 1000);
  CHECK(late.met == Met::waiting);
  end_read(*host.partition, *shared.words, slots[9]);
  CHECK(shared.words->line.wait(late.place, deadline_in(0)) == Wake::changed);
  CHECK(has_entered_to_read(*host.partition, *shared.words, who, late.place, 1000) == slots[9]);
}

TEST("a reader that dies leaves, and poisons nothing; a writer poisons once it has entered") {
  Host host;
  SharedBoth shared(host);
  const auto process = [&](std::uint32_t slot) { return Who::make(host.partition->server(), {slot, 1}); };
  const auto bury_slot = [&](std::uint32_t slot) {
    bury_everywhere(*host.heap, [&](Who who) { return who == process(slot); });
  };
  CHECK(try_read(*host.partition, *shared.words, process(0), 1).has_value());
  const Queued writer = queue_up(*shared.words, process(1), 1);
  const Queued next = queue_up(*shared.words, process(2), 1);
  CHECK(writer.met == Met::waiting);
  bury_slot(1);  // at the gate, before it entered
  CHECK(!has_entered(*shared.words, process(2), next.place));
  bury_slot(0);
  CHECK(shared.words->line.wait(next.place, deadline_in(0)) == Wake::changed);
  CHECK(has_entered(*shared.words, process(2), next.place));
  CHECK(!look(*shared.words).is_poisoned());
  bury_slot(2);
  CHECK(look(*shared.words).is_poisoned());
  CHECK(look(*shared.words).who().is_nobody());
}

TEST("a block that is viewed stays when another value comes, and goes with the last view or its process") {
  Host host;
  SharedBoth shared(host);
  const Who me = Who::make(host.partition->server(), host.process);
  const Who other = Who::make(host.partition->server(), {7, 1});
  std::vector<GlobalPointer> remote;
  const GlobalPointer first = make_block(*host.heap, 100);
  put_value(*host.heap, shared.object, *shared.words, first, remote);
  const auto mine = try_read(*host.partition, *shared.words, me, 1);
  const auto theirs = try_read(*host.partition, *shared.words, other, 1);
  if (!CHECK(mine.has_value() && theirs.has_value())) return;
  begin_view(*host.partition, *shared.words, *mine, me, first.address);
  begin_view(*host.partition, *shared.words, *theirs, other, first.address);
  for (int round = 0; round < 3; ++round) {
    CHECK(try_write(*host.partition, *shared.words, me));  // a view keeps nobody waiting
    put_value(*host.heap, shared.object, *shared.words, make_block(*host.heap, 100), remote);
    unlock(*host.partition, *shared.words, false);
  }
  const auto is_there = [&] { return host.partition->find(first.address, first.colour).ok(); };
  CHECK(is_there());
  end_view(*host.heap, shared.object, *shared.words, *mine, first, remote);
  CHECK(is_there());
  bury_everywhere(*host.heap, [&](Who who) { return who == other; });
  CHECK(!is_there());
}
