// Queued tasks that another server takes over: what each side has afterwards, whatever the other does.
#include "server/takeovers.hpp"
#include "test/harness.hpp"
#include "test/host.hpp"

using namespace drust;
using server::Takeovers;
using tasks::Queue;
using tasks::RecordState;
using test::Host;

namespace {

// A server with tasks in its queue, each with a record here and a box that moves with it.
struct Victim {
  Host host{1};
  Takeovers takeovers{*host.heap, *host.queue, *host.peers};
  std::vector<GlobalPointer> records;
  std::uint64_t blocks_before = 0;

  void spawn(std::size_t tasks) {
    blocks_before = host.partition->live_blocks();
    for (std::size_t index = 0; index < tasks; ++index) {
      const GlobalPointer call = host.make_parent({host.make(test::pattern(100))});
      records.push_back(Queue::make_record(*host.heap, 1).value());
      CHECK(host.queue->push(call, records.back(), {.retries = 2}).ok());
    }
  }
  [[nodiscard]] ServerId server_of(std::size_t index) const {
    return static_cast<ServerId>(Queue::find_record(*host.partition, records[index])->server.load());
  }
  [[nodiscard]] std::optional<RecordState> state_of(std::size_t index) const {
    return Queue::look(*host.partition, records[index]);
  }
};

}  // namespace

TEST("a thief gets the older half with their retries, and the boxes in them stay where they lie") {
  Victim victim;
  Host thief(2);
  CHECK(thief.serve().ok());
  victim.host.know(thief);
  victim.spawn(5);
  CHECK_EQ(victim.takeovers.give(2, 100), 3U);
  CHECK_EQ(victim.takeovers.tend(), 0U);
  CHECK_EQ(victim.host.queue->ready(), 2U);
  CHECK_EQ(victim.host.queue->running(), 0U);
  for (std::size_t index = 0; index < 5; ++index) CHECK_EQ(victim.server_of(index), index < 3 ? 2U : 1U);
  // Three call blocks have gone, their boxes have not.
  CHECK_EQ(victim.host.partition->live_blocks(), victim.blocks_before + 5 + 5 + 2);
  for (std::size_t index = 0; index < 3; ++index) {
    const auto entry = thief.queue->take(0);
    if (!CHECK(entry.ok())) return;
    CHECK(entry.value().record == victim.records[index]);
    CHECK(thief.partition->is_local(entry.value().task.address));
  }
}

TEST("nothing is given to oneself, or to a server that is lost") {
  Victim victim;
  victim.spawn(4);
  victim.host.know(2, 0);
  CHECK_EQ(victim.takeovers.give(1, 100), 0U);
  CHECK_EQ(victim.takeovers.give(2, 100), 0U);
  CHECK_EQ(victim.host.queue->ready(), 4U);
}

TEST("a task whose record was dropped stays where the reaper looks for it") {
  Victim victim;
  Host thief(2);
  CHECK(thief.serve().ok());
  victim.host.know(thief);
  victim.spawn(1);
  CHECK(Queue::refuse(*victim.host.partition, victim.records[0]));
  CHECK_EQ(victim.takeovers.give(2, 100), 0U);
  CHECK_EQ(victim.host.queue->ready(), 1U);
  CHECK_EQ(victim.server_of(0), 1U);
}

TEST("a thief without room leaves the tasks where they were") {
  Victim victim;
  Host thief(2, 2 * kSpanBytesMax);
  while (thief.heap->allocate_extent(kSegmentBytes).ok()) {
  }
  while (thief.heap->allocate_extent(64).ok()) {
  }
  CHECK(thief.serve().ok());
  victim.host.know(thief);
  victim.spawn(2);
  CHECK_EQ(victim.takeovers.give(2, 100), 0U);
  CHECK_EQ(victim.host.queue->ready(), 2U);
  CHECK_EQ(victim.server_of(0), 1U);
}

TEST("a task on its way to a server that is lost is lost with it, once that is known") {
  Victim victim;
  std::uint16_t port = 0;
  {
    Host thief(2);
    CHECK(thief.serve().ok());
    port = thief.server->port();
  }
  victim.host.know(2, port);
  victim.spawn(4);
  CHECK_EQ(victim.takeovers.give(2, 100), 0U);
  CHECK_EQ(victim.host.queue->ready(), 3U);  // after the first that failed, no other was tried
  CHECK_EQ(victim.takeovers.tend(), 1U);
  CHECK(victim.state_of(0) == RecordState::pending);
  CHECK_EQ(victim.server_of(0), 2U);
  victim.host.know(2, 0, 2);
  CHECK_EQ(victim.takeovers.tend(), 0U);
  CHECK(victim.state_of(0) == RecordState::lost);
  CHECK_EQ(victim.host.queue->running(), 0U);
  CHECK_EQ(victim.host.partition->live_blocks(), victim.blocks_before + 4 + 3 + 3);  // its call and its box are gone
}

TEST("a task that a silent thief turns out not to have waits here again") {
  Victim victim;
  std::uint16_t port = 0;
  {
    Host gone(2);
    CHECK(gone.serve().ok());
    port = gone.server->port();
  }
  victim.host.know(2, port);
  victim.spawn(1);
  CHECK_EQ(victim.takeovers.give(2, 100), 0U);
  Host thief(2);
  CHECK(thief.serve(2, port).ok());
  while (victim.takeovers.tend() != 0) {
  }
  CHECK_EQ(victim.host.queue->ready(), 1U);
  CHECK_EQ(victim.server_of(0), 1U);
  const auto entry = victim.host.queue->take(0);
  CHECK(entry.ok() && entry.value().record == victim.records[0]);
}

TEST("a task that a silent thief turns out to have is the thief's") {
  Victim victim;
  std::uint16_t port = 0;
  {
    Host gone(2);
    CHECK(gone.serve().ok());
    port = gone.server->port();
  }
  victim.host.know(2, port);
  victim.spawn(1);
  CHECK_EQ(victim.takeovers.give(2, 100), 0U);
  Host thief(2);
  CHECK(thief.queue->push(thief.make_parent({}), victim.records[0]).ok());  // the request had arrived, not its reply
  CHECK(thief.serve(2, port).ok());
  CHECK_EQ(victim.takeovers.tend(), 0U);
  CHECK_EQ(victim.host.queue->ready(), 0U);
  CHECK_EQ(victim.host.queue->running(), 0U);
  CHECK_EQ(victim.server_of(0), 2U);
}
