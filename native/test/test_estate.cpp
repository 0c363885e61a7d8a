// What a dead process answered for beyond its own blocks: what it owed to other servers, what its tasks had
// decided, what nobody could be told yet. test_reaper.cpp has the records and calls of its own.
#include <chrono>
#include <map>

#include "base/limits.hpp"
#include "server/deliver.hpp"
#include "server/reaper.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using tasks::Queue;
using tasks::RecordState;
using test::block_at;
using test::Host;
using test::make_block;

namespace {

constexpr ServerId kElsewhere = 9;

GlobalPointer elsewhere(std::uint64_t number) {
  return {Address::make(kElsewhere, 64 * number), (1ULL << 48) | number, 128};
}

struct Scene {
  Host host;
  Queue queue{*host.heap};
  cache::Copies copies{*host.heap};
  server::Peers peers{*host.heap, {.token = server::Token(kTokenBytes)}};
  server::Reaper reaper{*host.heap, queue, copies, peers};
  ProcessId second = host.join();
  Heap dying{*host.partition, second};
  Queue of_dying{dying};

  [[nodiscard]] bool is_there(const GlobalPointer& block) const {
    return host.partition->find(block.address, block.colour).ok();
  }

  // What the server itself owes to others now, by colour: as its own reaper would find it, so at the end of a test.
  [[nodiscard]] std::map<Colour, std::uint64_t> owed() {
    host.partition->declare_dead(host.process);
    std::map<Colour, std::uint64_t> flags;
    for (const Owed& each : dying.take_owed(host.process)) flags[each.block.colour] = each.flags;
    return flags;
  }

  // A task that the dying process runs, for that record, and has returned from: what it leaves is decided. Its new
  // version of what it was lent, and the completion that names it.
  std::pair<GlobalPointer, GlobalPointer> return_from_a_task(const GlobalPointer& record) {
    const GlobalPointer call = make_block(*host.heap, 100);
    block_at(*host.partition, call.address).header().codec = tasks::kTaskCodec;
    ensure(host.heap->set_owner(call, owner_word(OwnerKind::queue, {})), "no call");
    ensure(queue.push(call, record).ok(), "no room in the queue");
    const auto entry = of_dying.take(0);
    ensure(entry.ok(), "no task");
    const GlobalPointer version = make_block(dying, 10);
    ensure(dying.set_owner(version, owner_word(OwnerKind::borrower, second)), "no version");
    const GlobalPointer completion = make_block(dying, 10, {version}, ChildPointer::kMutable);
    block_at(*host.partition, completion.address).header().codec = tasks::kCompletionCodec;
    ensure(of_dying.returned(entry.value(), completion), "it was lost before");
    return {version, completion};
  }
};

}  // namespace

TEST("frees that a dead process owed to other servers are owed by its own, each as it was asked for") {
  Scene scene;
  const std::map<Colour, std::uint64_t> asked = {
      {elsewhere(1).colour, 0},
      {elsewhere(2).colour, wire::FreeItem::kShallow},
      {elsewhere(3).colour, wire::FreeItem::kMade},
      {elsewhere(4).colour, wire::FreeItem::kTied}};
  for (std::uint64_t number = 1; number <= asked.size(); ++number)
    scene.dying.note_owed(elsewhere(number), asked.at(elsewhere(number).colour));
  scene.reaper.reap(scene.second, 0, "killed");
  CHECK(scene.owed() == asked);
}

TEST("a child on another server goes with its parent, though who freed that died before he could send it on") {
  Scene scene;
  std::vector<GlobalPointer> unsent;
  CHECK(scene.dying.free(make_block(scene.dying, 10, {elsewhere(1)}), unsent).ok());
  CHECK_EQ(unsent.size(), 1U);
  scene.reaper.reap(scene.second, 0, "killed");
  CHECK(scene.owed() == std::map<Colour, std::uint64_t>{{elsewhere(1).colour, 0}});
}

TEST("a version on another server goes as one with the version here that it lies in, and as any block once that is none") {
  for (const bool is_committed : {false, true}) {
    Scene scene;
    const Address around = scene.dying.allocate({.codec = 9, .child_count = 1, .buffer_bytes = {}}).value();
    block_at(*scene.host.partition, around).children()[0] = {elsewhere(1).address.raw(), elsewhere(1).colour, 128,
                                                             ChildPointer::kMade};
    scene.dying.adopt_children(around);
    const GlobalPointer block = scene.dying.publish(around);
    if (is_committed) CHECK(scene.dying.set_owner(block, owner_word(OwnerKind::process, scene.second)));
    scene.reaper.reap(scene.second, 0, "killed");
    CHECK_EQ(scene.reaper.tend(), 0U);
    CHECK(!scene.is_there(block));
    const std::uint64_t expected = is_committed ? 0 : wire::FreeItem::kMade;
    CHECK(scene.owed() == std::map<Colour, std::uint64_t>{{elsewhere(1).colour, expected}});
  }
}

TEST("what a dead process owned stays while a task has it on loan, and goes with the task") {
  for (const std::uint64_t lend : {ChildPointer::kShared, ChildPointer::kMutable}) {
    Scene scene;
    const GlobalPointer value = make_block(scene.dying, 10);
    const std::vector<ChildPointer> lends = {{value.address.raw(), value.colour, value.extent_bytes, lend}};
    const GlobalPointer record = Queue::make_record(scene.dying, scene.host.partition->server(), lends).value();
    Queue::find_record(*scene.host.partition, record)->call.store(tasks::Record::kCallArrived);
    scene.reaper.reap(scene.second, 0, "killed");
    CHECK_EQ(scene.reaper.tend(), 1U);
    CHECK(scene.is_there(value));
    std::vector<GlobalPointer> remote;
    std::vector<GlobalPointer> made;
    server::deliver_here(*scene.host.heap, record, RecordState::done, make_block(*scene.host.heap, 50), remote, made);
    CHECK_EQ(scene.reaper.tend(), 0U);
    CHECK_EQ(scene.host.partition->live_blocks(), 0U);
  }
}

TEST("what a task had decided to return is not its worker's any more, though it dies before it has said so") {
  Scene scene;
  const GlobalPointer record = Queue::make_record(*scene.host.heap, scene.host.partition->server()).value();
  const auto [version, completion] = scene.return_from_a_task(record);
  scene.reaper.reap(scene.second, 0, "killed");
  CHECK_EQ(scene.reaper.tend(), 0U);
  CHECK(Queue::look(*scene.host.partition, record) == RecordState::done);
  CHECK(scene.is_there(version));
  CHECK(scene.is_there(completion));
}

TEST("a completion that its joiner has opened stays his, though its worker died before it could forget it") {
  Scene scene;
  const GlobalPointer record = Queue::make_record(*scene.host.heap, scene.host.partition->server()).value();
  const auto [version, completion] = scene.return_from_a_task(record);
  CHECK(server::deliver(scene.dying, scene.peers, record, RecordState::done, completion, false).ok());
  const ProcessId joiner = scene.host.join();
  CHECK(scene.host.heap->set_owner(completion, owner_word(OwnerKind::process, joiner)));
  CHECK(scene.host.heap->free_shallow(record).ok());
  scene.reaper.reap(scene.second, 0, "killed");
  CHECK_EQ(scene.reaper.tend(), 0U);
  CHECK(scene.is_there(completion));
  CHECK(scene.is_there(version));
  CHECK_EQ(scene.queue.running(), 0U);
}

TEST("a dead worker's completion waits for a receiver that does not answer, until that is known to have ended") {
  Scene scene;
  const auto set_endpoint = [&](std::uint64_t epoch) {  // nobody listens there
    scene.host.partition->set_endpoint(kElsewhere, {.epoch = epoch, .host = "127.0.0.1", .port = 1});
  };
  set_endpoint(1);
  const GlobalPointer record = elsewhere(1);
  const auto [version, completion] = scene.return_from_a_task(record);
  scene.reaper.reap(scene.second, 0, "killed");
  for (int look = 0; look < 2; ++look) {
    CHECK_EQ(scene.reaper.tend(), 1U);
    CHECK(scene.is_there(version));
    CHECK(scene.is_there(completion));
  }
  CHECK_EQ(scene.queue.running(), 1U);
  // Its receiver came back as another: nobody waits there.
  scene.host.partition->set_endpoint(kElsewhere, {.epoch = 2, .host = "", .port = 0});
  CHECK_EQ(scene.reaper.tend(), 0U);
  CHECK_EQ(scene.queue.running(), 0U);
  CHECK_EQ(scene.host.partition->live_blocks(), 0U);
}

namespace {

// False if this machine was too slow to ask before the time was over.
bool try_call_that_arrives() {
  Scene scene;
  scene.host.partition->set_endpoint(kElsewhere, {.epoch = 1, .host = "127.0.0.1", .port = 1});  // nobody listens
  const GlobalPointer record = Queue::make_record(scene.dying, kElsewhere).value();
  const GlobalPointer call = make_block(scene.dying, 100);
  block_at(*scene.host.partition, call.address).header().codec = tasks::kTaskCodec;
  Queue::find_record(*scene.host.partition, record)->call.store(call.address.raw());
  CHECK(scene.dying.set_owner(call, owner_word(OwnerKind::in_transit, scene.second)));
  const auto start = std::chrono::steady_clock::now();
  scene.reaper.reap(scene.second, 0, "killed");
  const std::size_t waiting = scene.reaper.tend();
  const bool is_there = scene.is_there(call);
  if (std::chrono::steady_clock::now() - start > std::chrono::milliseconds(kLostCallMs)) return false;
  CHECK_EQ(waiting, 1U);
  CHECK(is_there);
  // It had arrived, and its task has ended.
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  const GlobalPointer completion = make_block(*scene.host.heap, 50);
  CHECK(server::deliver_here(*scene.host.heap, record, RecordState::done, completion, remote, made) ==
        tasks::Delivery::unwanted);
  scene.host.partition->set_endpoint(kElsewhere, {.epoch = 2, .host = "", .port = 0});  // else it is to hear of the death
  CHECK_EQ(scene.reaper.tend(), 0U);
  CHECK_EQ(scene.host.partition->live_blocks(), 0U);
  return true;
}

}  // namespace

TEST("a dead process's call that may still arrive is not given up before its time") {
  for (int attempt = 0; attempt < 20; ++attempt) {
    if (try_call_that_arrives()) return;
  }
  CHECK(!"twenty attempts were too slow");
}
