// The task queue and the records: order, waiting, waking, cancelling, and what dead processes leave.
#include <atomic>
#include <chrono>
#include <csignal>
#include <map>
#include <random>
#include <sys/wait.h>
#include <thread>

#include "base/kill_point.hpp"
#include "base/limits.hpp"
#include "base/patience.hpp"
#include "tasks/queue.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"
#include "test/queue_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using tasks::Delivery;
using tasks::Entry;
using tasks::Held;
using tasks::Queue;
using tasks::Record;
using tasks::RecordState;
using test::Host;
using test::make_block;
using test::record;
using test::Second;
using test::task;

TEST("tasks are taken in the order they came, each once") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  for (std::uint64_t number = 0; number < 100; ++number) CHECK(queue.push(task(number), record(number)).ok());
  CHECK_EQ(queue.ready(), 100U);
  for (std::uint64_t number = 0; number < 100; ++number) {
    const auto entry = (number % 2 == 0 ? queue : second.queue).take(0);
    if (!CHECK(entry.ok())) return;
    CHECK(entry.value().task == task(number));
    CHECK(entry.value().record == record(number));
    if (number % 3 != 0) (number % 2 == 0 ? queue : second.queue).finish(entry.value());
  }
  CHECK_EQ(queue.ready(), 0U);
  CHECK_EQ(queue.running(), 34U);
  CHECK(queue.take(0).status().code() == Code::timed_out);
}

TEST("a task that runs for ever holds up nobody, however often the ring goes round") {
  Host host;
  Queue queue(*host.heap);
  CHECK(queue.push(task(1), record(1)).ok());
  const auto endless = queue.take(0);
  for (std::uint64_t number = 0; number < 3 * kQueueEntries; ++number) {
    CHECK(queue.push(task(number), record(number)).ok());
    const auto entry = queue.take(0);
    if (!CHECK(entry.ok() && entry.value().task == task(number))) return;
    queue.finish(entry.value());
  }
  CHECK_EQ(queue.running(), 1U);
  queue.finish(endless.value());
  CHECK_EQ(queue.running(), 0U);
}

TEST("a queue takes as many tasks as it has entries and says full to one more") {
  Host host;
  Queue queue(*host.heap);
  for (std::uint64_t number = 0; number < kQueueEntries; ++number) {
    if (!CHECK(queue.push(task(number), record(number)).ok())) return;
  }
  CHECK(queue.push(task(0), record(0)).status().code() == Code::full);
  const auto entry = queue.take(0);
  CHECK(queue.push(task(0), record(0)).status().code() == Code::full);  // it runs, its entry is still taken
  queue.finish(entry.value());
  CHECK(queue.push(task(77), record(0)).ok());
  for (std::uint64_t number = 1; number < kQueueEntries; ++number) {
    const auto next = queue.take(0);
    if (!CHECK(next.ok() && next.value().task == task(number))) return;
  }
  CHECK(queue.take(0).value().task == task(77));
}

TEST("a sleeping worker wakes for a push, and for the end of the partition") {
  Host host;
  Queue queue(*host.heap);
  std::atomic<int> taken{0};
  std::atomic<bool> closed{false};
  std::thread worker([&] {
    while (true) {
      const auto entry = queue.take(60'000);
      if (!entry.ok()) {
        closed = entry.status().code() == Code::closed;
        return;
      }
      queue.finish(entry.value());
      taken.fetch_add(1);
    }
  });
  for (int number = 0; number < 50; ++number) {
    CHECK(queue.push(task(1), record(1)).ok());
    while (taken.load() <= number) std::this_thread::yield();
  }
  host.partition->close();
  worker.join();
  CHECK(closed.load());
  CHECK(queue.take(1000).status().code() == Code::closed);
}

TEST("a task that waits can be withdrawn, one that runs cannot") {
  Host host;
  Queue queue(*host.heap);
  for (std::uint64_t number = 0; number < 3; ++number) CHECK(queue.push(task(number), record(number)).ok());
  const auto running = queue.take(0);
  CHECK(!queue.withdraw(record(0)));
  const auto back = queue.withdraw(record(1));
  CHECK(back && back->task == task(1));
  CHECK(!queue.withdraw(record(1)));
  CHECK(!queue.withdraw(record(9)));
  queue.finish(*back);
  CHECK(queue.take(0).value().task == task(2));
  queue.finish(running.value());
  CHECK_EQ(queue.running(), 1U);
}

TEST("reaping returns what the dead process ran, in order, and leaves the others' tasks alone") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  for (std::uint64_t number = 0; number < 6; ++number)
    CHECK(second.queue.push(task(number), record(number)).ok());
  const auto mine = queue.take(0);
  const auto first = second.queue.take(0);
  CHECK(second.queue.take(0).ok());
  host.partition->declare_dead(second.process);
  const std::vector<Held> ran = queue.reap(second.process);
  if (!CHECK_EQ(ran.size(), 2U)) return;
  CHECK(ran[0].entry.task == task(1) && ran[1].entry.task == task(2));
  CHECK(ran[0].entry.worker == second.process);
  CHECK_EQ(queue.running(), 3U);  // until each one's fate is decided
  for (const Held& held : ran) queue.finish(held.entry);
  CHECK_EQ(queue.running(), 1U);
  CHECK_EQ(queue.ready(), 3U);  // what it had pushed still waits
  queue.finish(first.value());  // late, from nowhere: not anybody's entry any more
  CHECK_EQ(queue.running(), 1U);
  queue.finish(mine.value());
  CHECK(queue.reap(second.process).empty());
}

TEST("an entry that a dead producer had reserved is empty again after the reaping") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  auto& first_entry = *reinterpret_cast<std::atomic<std::uint64_t>*>(host.partition->queue_area() + 4096);
  // reserved | ticket 0 | slot | generation: where push() stands when it is killed behind its first step
  // (queue.cpp)
  first_entry =
      1ULL | (std::uint64_t{second.process.slot} << 24) | (std::uint64_t{second.process.generation} << 40);
  CHECK(queue.push(task(1), record(1)).ok());
  CHECK(queue.take(0).value().task == task(1));  // nobody waits for the dead
  host.partition->declare_dead(second.process);
  CHECK(queue.reap(second.process).empty());
  CHECK_EQ(first_entry.load() & 7U, 0U);
}

TEST("a task's fate is decided once: by its worker, or by whoever reaps it") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  for (std::uint64_t number = 0; number < 3; ++number) CHECK(queue.push(task(number), record(number), {.retries = 2}).ok());
  const auto first = second.queue.take(0);
  const auto other = second.queue.take(0);
  CHECK(second.queue.take(0).ok());
  CHECK(second.queue.returned(first.value(), task(50)));
  CHECK(!second.queue.returned(first.value(), task(51)));
  second.queue.forbid_rollback(other.value());
  host.partition->declare_dead(second.process);
  const std::vector<Held> held = queue.reap(second.process);
  if (!CHECK_EQ(held.size(), 3U)) return;
  CHECK(held[0].fate.phase == protocol::TaskPhase::Returned);
  CHECK(held[0].completion == task(50));  // it died before its completion arrived: the entry still has it
  CHECK(held[1].fate.phase == protocol::TaskPhase::Running && held[1].fate.forbidden);
  CHECK(!held[2].fate.forbidden);
  CHECK_EQ(held[2].retries, 2U);
  const auto lost = protocol::apply(held[1].fate, protocol::TaskEvent::WorkerLost);
  queue.decide(held[1], lost.record);
  CHECK(!second.queue.returned(other.value(), task(52)));  // a worker that was only stopped finds itself fenced
}

TEST("a task that runs again keeps its place and has one retry less, none if it had not begun") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  for (std::uint64_t number = 0; number < 3; ++number) CHECK(queue.push(task(number), record(number), {.retries = 2}).ok());
  CHECK(second.queue.take(0).ok());
  host.partition->declare_dead(second.process);
  std::vector<Held> held = queue.reap(second.process);
  if (!CHECK_EQ(held.size(), 1U)) return;
  queue.run_again(held[0]);
  CHECK_EQ(queue.running(), 0U);
  Second third(host);
  const auto again = third.queue.take(0);
  CHECK(again.ok() && again.value().task == task(0));
  host.partition->declare_dead(third.process);
  held = queue.reap(third.process);
  if (!CHECK_EQ(held.size(), 1U)) return;
  CHECK_EQ(held[0].retries, 1U);
  held[0].fate = {};  // as if it had died before its first instruction
  queue.run_again(held[0]);
  Second fourth(host);
  CHECK(fourth.queue.take(0).ok());
  host.partition->declare_dead(fourth.process);
  CHECK_EQ(queue.reap(fourth.process)[0].retries, 1U);
}

TEST("a queue knows the records of the tasks it has, waiting or running, and no others") {
  Host host;
  Queue queue(*host.heap);
  CHECK(!queue.knows(record(1)));
  CHECK(queue.push(task(1), record(1)).ok());
  CHECK(queue.knows(record(1)) && !queue.knows(record(2)));
  const auto entry = queue.take(0);
  CHECK(queue.knows(record(1)));
  queue.finish(entry.value());
  CHECK(!queue.knows(record(1)));
}

TEST("many producers and consumers lose no task and run none twice") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  constexpr std::uint64_t kEach = 4000;
  std::vector<std::atomic<int>> runs(2 * kEach);
  std::atomic<std::uint64_t> done{0};
  std::vector<std::thread> threads;
  for (std::uint64_t producer = 0; producer < 2; ++producer) {
    threads.emplace_back([&, producer] {
      Queue& mine = producer == 0 ? queue : second.queue;
      for (std::uint64_t number = 0; number < kEach; ++number) {
        const std::uint64_t name = producer * kEach + number;
        CHECK(mine.push(task(name), record(name)).ok());
        if (number % 50 != 0) continue;
        if (const auto back = mine.withdraw(record(name))) {
          mine.finish(*back);
          CHECK(mine.push(task(name), record(name)).ok());
        }
      }
    });
    threads.emplace_back([&, producer] {
      Queue& mine = producer == 0 ? second.queue : queue;
      while (done.load() < 2 * kEach) {
        const auto entry = mine.take(50);
        if (!entry.ok()) continue;
        runs[entry.value().task.extent_bytes].fetch_add(1);
        CHECK_EQ(entry.value().record.colour & 0xffffffU, entry.value().task.extent_bytes);
        mine.finish(entry.value());
        done.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& count : runs) CHECK_EQ(count.load(), 1);
  CHECK_EQ(queue.ready() + queue.running(), 0U);
}

TEST("a record is completed once, by whoever is first, and the join sees that outcome") {
  Host host;
  const auto made = Queue::make_record(*host.heap, 5);
  if (!CHECK(made.ok())) return;
  const GlobalPointer completion = make_block(*host.heap, 300);
  CHECK(Queue::wait(*host.partition, made.value(), 0).status().code() == Code::timed_out);
  CHECK(Queue::look(*host.partition, made.value()) == RecordState::pending);
  CHECK(Queue::complete(*host.heap, made.value(), RecordState::pending, completion) != Delivery::applied);
  CHECK(Queue::complete(*host.heap, made.value(), RecordState::done, completion) == Delivery::applied);
  CHECK(Queue::complete(*host.heap, made.value(), RecordState::lost, {}) != Delivery::applied);
  const auto joined = Queue::wait(*host.partition, made.value(), 0);
  if (!CHECK(joined.ok())) return;
  const Record& outcome = *joined.value();
  CHECK(outcome.state.load() == RecordState::done);
  CHECK_EQ(outcome.server, 5U);
  CHECK(outcome.completion() == completion);
}

TEST("a lost task's record has no completion block") {
  Host host;
  const auto made = Queue::make_record(*host.heap, 5);
  CHECK(Queue::complete(*host.heap, made.value(), RecordState::lost, {}) == Delivery::applied);
  const auto joined = Queue::wait(*host.partition, made.value(), 0);
  CHECK(joined.ok() && joined.value()->state.load() == RecordState::lost &&
        joined.value()->completion().is_null());
}

TEST("a completion for a record that is gone, or for a block that is no record, changes nothing") {
  Host host;
  const auto made = Queue::make_record(*host.heap, 5);
  const GlobalPointer completion = make_block(*host.heap, 300);
  CHECK(host.heap->free_shallow(made.value()).ok());
  CHECK(Queue::complete(*host.heap, made.value(), RecordState::done, completion) != Delivery::applied);
  const auto next = Queue::make_record(*host.heap, 6);  // at the same address
  CHECK_EQ(next.value().address.raw(), made.value().address.raw());
  CHECK(Queue::complete(*host.heap, made.value(), RecordState::done, completion) != Delivery::applied);
  CHECK(Queue::look(*host.partition, next.value()) == RecordState::pending);
  CHECK(!Queue::look(*host.partition, made.value()).has_value());
  CHECK(Queue::wait(*host.partition, made.value(), 0).status().code() == Code::not_found);
  const GlobalPointer plain = make_block(*host.heap, sizeof(Record));
  CHECK(Queue::complete(*host.heap, plain, RecordState::done, completion) != Delivery::applied);
}

TEST("a join sleeps until the completion, and ends when the partition closes") {
  Host host;
  const auto first = Queue::make_record(*host.heap, 3);
  const auto never = Queue::make_record(*host.heap, 3);
  std::thread worker([&] {
    CHECK(Queue::complete(*host.heap, first.value(), RecordState::done, {}) == Delivery::applied);
    host.partition->close();
  });
  CHECK(Queue::wait(*host.partition, first.value(), 60'000).ok());
  CHECK(Queue::wait(*host.partition, never.value(), 60'000).status().code() == Code::closed);
  worker.join();
  CHECK(Queue::wait(*host.partition, first.value(), 60'000).ok());  // what has completed stays readable
}

TEST("a signal ends a wait, so that Python can look at it") {
  Host host;
  Queue queue(*host.heap);
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  struct sigaction before = {};
  ::sigaction(SIGUSR1, &action, &before);
  std::atomic<bool> taken{false};
  std::atomic<bool> joined{false};
  const auto never = Queue::make_record(*host.heap, 3);
  std::thread sleeper([&] {
    CHECK(queue.take(60'000).status().code() == Code::interrupted);
    taken = true;
    CHECK(Queue::wait(*host.partition, never.value(), 60'000).status().code() == Code::interrupted);
    joined = true;
  });
  while (!joined.load()) {
    ::pthread_kill(sleeper.native_handle(), SIGUSR1);
    std::this_thread::yield();  // until one finds it asleep
  }
  sleeper.join();
  CHECK(taken.load());
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST("a dropped record takes its completion along, or refuses it when it comes later") {
  Host host;
  std::vector<GlobalPointer> remote;
  const GlobalPointer child = make_block(*host.heap, 10);
  const auto late = Queue::make_record(*host.heap, 3);
  CHECK(Queue::drop_record(*host.heap, late.value(), remote));
  CHECK(Queue::wait(*host.partition, late.value(), 0).status().code() == Code::not_found);
  CHECK(Queue::complete(*host.heap, late.value(), RecordState::done, {}) == Delivery::unwanted);
  CHECK(Queue::complete(*host.heap, late.value(), RecordState::done, {}) == Delivery::repeated);
  const auto early = Queue::make_record(*host.heap, 3);
  CHECK(Queue::complete(*host.heap, early.value(), RecordState::done, make_block(*host.heap, 0, {child})) ==
        Delivery::applied);
  CHECK(!Queue::drop_record(*host.heap, early.value(), remote));
  CHECK_EQ(host.partition->live_blocks(), 0U);
  // One whose completion was taken after wait(): what lies at its address now stays.
  const auto read = Queue::make_record(*host.heap, 3);
  const GlobalPointer completion = make_block(*host.heap, 10);
  CHECK(Queue::complete(*host.heap, read.value(), RecordState::done, completion) == Delivery::applied);
  CHECK(Queue::wait(*host.partition, read.value(), 0).ok());
  CHECK(host.heap->free_shallow(completion).ok());
  const GlobalPointer other = make_block(*host.heap, 10);
  CHECK_EQ(other.address.raw(), completion.address.raw());
  CHECK(!Queue::drop_record(*host.heap, read.value(), remote));
  CHECK_EQ(host.partition->live_blocks(), 1U);
}

#if DRUST_TEST_FORKS
TEST("a task that came to a worker killed before it slept is taken by another") {
  if (Patience::is_alone()) return;
  Host host;
  Queue queue(*host.heap);
  const pid_t pid = ::fork();
  if (pid == 0) {
    auto attached = Partition::attach(::dup(host.partition->memfd()));
    const auto process =
        attached.value()->claim_process(ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
    heap::Heap heap(*attached.value(), process.value());
    Queue mine(heap);
    arm_kill_point(KillPoint("queue.take.looking").index(), 1, KillAction::kill);
    static_cast<void>(mine.take(1000));
    ::_exit(3);
  }
  int status = 0;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  CHECK(WIFSIGNALED(status));
  std::atomic<bool> has_taken{false};
  std::thread sleeper([&] {
    Second second(host);
    has_taken = second.queue.take(5000).ok();
  });
  while (queue.idle() < 2) std::this_thread::yield();  // the dead one's bit, and the sleeper's
  CHECK(queue.push(task(1), record(1)).ok());
  sleeper.join();
  CHECK(has_taken.load());
}

TEST("producers and workers killed at any moment leave no entry that nobody answers for") {
  Host host;
  Queue queue(*host.heap);
  std::mt19937 random(4);
  for (int round = 0; round < 30; ++round) {
    int ends[2];
    ensure(::pipe(ends) == 0, "no pipe");
    const auto after = static_cast<std::uint32_t>(random() % 2000);
    const pid_t pid = ::fork();
    if (pid == 0) {
      auto attached = Partition::attach(::dup(host.partition->memfd()));
      const auto process =
          attached.value()->claim_process(ProcessKind::worker, static_cast<std::uint32_t>(::getpid()));
      heap::Heap heap(*attached.value(), process.value());
      Queue mine(heap);
      static_cast<void>(!::write(ends[1], "r", 1));
      test::die_in(after);
      for (std::uint64_t number = 0;; ++number) {
        static_cast<void>(mine.push(task(number), record(number)));
        const auto entry = mine.take(0);
        if (entry.ok() && number % 5 != 0) mine.finish(entry.value());
        if (number % 7 == 0) {
          if (const auto back = mine.withdraw(record(number))) mine.finish(*back);
        }
        if (mine.running() > 1000) ::raise(SIGKILL);
      }
    }
    char byte = 0;
    CHECK_EQ(::read(ends[0], &byte, 1), 1);
    ::close(ends[0]);
    ::close(ends[1]);
    CHECK_EQ(::waitpid(pid, nullptr, 0), pid);
    std::uint32_t ran = 0;
    const std::uint32_t running = queue.running();
    for (const ProcessInfo& info : host.partition->processes()) {
      if (info.pid != static_cast<std::uint32_t>(pid)) continue;
      host.partition->declare_dead(info.id);
      const std::vector<Held> held = queue.reap(info.id);
      ran = static_cast<std::uint32_t>(held.size());
      for (const Held& each : held) queue.finish(each.entry);
      host.heap->adopt(info.id);
      host.partition->release_process(info.id);
    }
    CHECK_EQ(ran, running);
    CHECK_EQ(queue.running(), 0U);
    while (true) {
      const auto entry = queue.take(0);
      if (!entry.ok()) break;
      queue.finish(entry.value());
    }
    // Not one entry is lost: the whole ring can be filled and emptied.
    for (std::uint64_t number = 0; number < kQueueEntries; ++number) {
      if (!CHECK(queue.push(task(number), record(number)).ok())) return;
    }
    for (std::uint64_t number = 0; number < kQueueEntries; ++number) {
      const auto entry = queue.take(0);
      if (!CHECK(entry.ok())) return;
      queue.finish(entry.value());
    }
  }
}
#endif

TEST("a condemned record is pending to its joiner, and lost once it is settled; nothing else completes it") {
  Host host;
  const GlobalPointer lent = make_block(*host.heap, 10);
  const ChildPointer lend{lent.address.raw(), lent.colour, lent.extent_bytes, ChildPointer::kMutable};
  const GlobalPointer made = Queue::make_record(*host.heap, 9, {&lend, 1}).value();
  CHECK(!Queue::condemn(*host.heap, made));
  CHECK_EQ(Queue::wait(*host.partition, made, 0).status().code(), Code::timed_out);
  CHECK(Queue::look(*host.partition, made) == RecordState::lost);  // to who would send its task
  const GlobalPointer completion = make_block(*host.heap, 10);
  CHECK(Queue::complete(*host.heap, made, RecordState::done, completion) == Delivery::unwanted);
  CHECK_EQ(Queue::wait(*host.partition, made, 0).status().code(), Code::timed_out);
  CHECK(Queue::settle(*host.heap, made));
  CHECK(Queue::wait(*host.partition, made, 0).value()->state.load() == RecordState::lost);
  CHECK(!Queue::settle(*host.heap, made));
}

TEST("a record without lends is lost as soon as it is condemned") {
  Host host;
  const GlobalPointer made = Queue::make_record(*host.heap, 9).value();
  CHECK(!Queue::settle(*host.heap, made));  // of a server that lives
  CHECK(Queue::condemn(*host.heap, made));
  CHECK(Queue::look(*host.partition, made) == RecordState::lost);
}

TEST("a condemned record that nobody joins goes when it is settled, dropped before or after") {
  for (const bool is_dropped_first : {false, true}) {
    Host host;
    const ChildPointer lend{64 * 1024, 5, 64, ChildPointer::kShared};
    const GlobalPointer made = Queue::make_record(*host.heap, 9, {&lend, 1}).value();
    if (is_dropped_first) CHECK(Queue::refuse(*host.partition, made));
    CHECK(!Queue::condemn(*host.heap, made));
    CHECK(Queue::refuse(*host.partition, made));
    const GlobalPointer completion = make_block(*host.heap, 10);
    CHECK(Queue::complete(*host.heap, made, RecordState::done, completion) == Delivery::unwanted);
    CHECK(Queue::find_record(*host.partition, made) != nullptr);
    CHECK(Queue::settle(*host.heap, made));
    CHECK(Queue::find_record(*host.partition, made) == nullptr);
  }
}

TEST("a process that waits for a task is idle until it gets one") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  CHECK_EQ(queue.idle(), 0U);
  std::thread taker([&] { CHECK(second.queue.take(60'000).ok()); });
  while (queue.idle() == 0) std::this_thread::yield();
  CHECK(queue.push(task(1), record(1)).ok());
  taker.join();
  CHECK_EQ(queue.idle(), 0U);
  CHECK_EQ(queue.ready(), 0U);
}

TEST("no more waiting tasks are counted than were asked for") {
  Host host;
  Queue queue(*host.heap);
  for (std::uint64_t number = 0; number < 10; ++number) CHECK(queue.push(task(number), record(number)).ok());
  CHECK_EQ(queue.ready(4), 4U);
  CHECK_EQ(queue.ready(), 10U);
}

TEST("the older half of what waits is given away, never what is bound or came from elsewhere") {
  Host host;
  Queue queue(*host.heap);
  const auto local = [&](std::uint64_t number) {
    return GlobalPointer{Address::make(3, 64 * (number + 1)), (7ULL << 48) | number, 104};
  };
  CHECK(queue.push(task(0), local(0), {.is_bound = true}).ok());
  CHECK(queue.push(task(1), record(1)).ok());
  for (std::uint64_t number = 2; number < 7; ++number) CHECK(queue.push(task(number), local(number), {.retries = 4}).ok());
  std::vector<Held> taken = queue.take_unbound(100);
  if (!CHECK_EQ(taken.size(), 3U)) return;
  for (std::uint64_t index = 0; index < 3; ++index) {
    CHECK(taken[index].entry.task == task(index + 2));
    CHECK(taken[index].entry.record == local(index + 2));
    CHECK_EQ(taken[index].retries, 4U);
    CHECK(taken[index].fate.phase == protocol::TaskPhase::Queued);
    CHECK(queue.knows(local(index + 2)));
  }
  CHECK_EQ(queue.take_unbound(0).size(), 0U);
  queue.finish(taken[0].entry);
  queue.run_again(taken[1]);  // at its old place in the order, and it costs no retry
  queue.finish(taken[2].entry);
  for (const std::uint64_t number : {0, 1, 3, 5, 6}) {
    const auto entry = queue.take(0);
    if (!CHECK(entry.ok())) return;
    CHECK(entry.value().task == task(number));
    queue.finish(entry.value());
  }
  CHECK_EQ(queue.running(), 0U);
}

TEST("what idle processes are about to take is not given away") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  std::atomic<bool> is_over = false;
  std::thread taker([&] {
    while (!is_over) static_cast<void>(second.queue.take(20));
  });
  while (queue.idle() == 0) std::this_thread::yield();
  CHECK_EQ(queue.take_unbound(100).size(), 0U);
  is_over = true;
  taker.join();
}
