// Tasks that are left to their spawner for a moment: who takes them, and when.
#include <atomic>
#include <thread>
#include <vector>

#include "tasks/queue.hpp"
#include "test/harness.hpp"
#include "test/queue_fixture.hpp"

using namespace drust;
using tasks::Queue;
using test::Host;
using test::record;
using test::Second;
using test::task;

TEST("a task that is kept is its spawner's alone, until it is offered or the moment is over") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  constexpr std::uint32_t kLong = 3'600'000'000;
  CHECK(queue.push(task(0), record(0), {.kept_us = kLong}).ok());
  const auto offered = queue.push(task(1), record(1), {.kept_us = kLong});
  CHECK(queue.push(task(2), record(2)).ok());
  CHECK(second.queue.take(0).value().task == task(2));
  CHECK(second.queue.take(1).status().code() == Code::timed_out);
  CHECK(second.queue.take_unbound(8).empty());
  queue.offer(offered.value());
  CHECK(second.queue.take(0).value().task == task(1));
  queue.offer(offered.value());  // too late, and nothing happens
  const auto own = queue.withdraw(record(0));
  CHECK(own && own->task == task(0));
  CHECK(queue.push(task(3), record(3), {.kept_us = 2000}).ok());
  const auto later = second.queue.take(60'000);
  CHECK(later.ok() && later.value().task == task(3));
}

TEST("a kept task is waited for by somebody, though whoever did so takes another, and wakes who sleeps when it is offered") {
  Host host;
  Queue queue(*host.heap);
  Second second(host);
  for (const std::uint32_t kept_us : {20'000U, 3'600'000'000U}) {
    const auto kept = queue.push(task(0), record(0), {.kept_us = kept_us});
    std::atomic<int> taken{0};
    std::vector<std::thread> workers;
    for (Queue* each : {&queue, &second.queue}) {
      workers.emplace_back([each, &taken] {
        CHECK(each->take(60'000).ok());
        taken.fetch_add(1);
      });
    }
    while (queue.idle() < 2) std::this_thread::yield();
    CHECK(queue.push(task(1), record(1)).ok());
    while (taken.load() < 1) std::this_thread::yield();
    if (kept_us > 20'000) queue.offer(kept.value());
    for (std::thread& worker : workers) worker.join();
    CHECK_EQ(queue.ready(), 0U);
  }
}
