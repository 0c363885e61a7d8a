// What the server does with what a dead process leaves, where the moment of the death is one that a test of whole
// processes meets once in a thousand runs.
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

// A server's half, and a process of its host that is to die.
struct Scene {
  Host host;
  Queue queue{*host.heap};
  cache::Copies copies{*host.heap};
  server::Peers peers{*host.heap, {.token = {}}};
  server::Reaper reaper{*host.heap, queue, copies, peers};
  ProcessId second = host.join();
  Heap dying{*host.partition, second};

  // The call block of a task for another server, as bind/runtime.cpp prepares it.
  GlobalPointer make_call(const GlobalPointer& record) {
    const GlobalPointer call = make_block(dying, 100);
    block_at(*host.partition, call.address).header().codec = tasks::kTaskCodec;
    Queue::find_record(*host.partition, record)->call.store(call.address.raw());
    return call;
  }
  void reap() {
    reaper.reap(second, 0, "killed");
    CHECK_EQ(reaper.tend(), 0U);
    CHECK_EQ(host.partition->live_blocks(), 0U);
  }
};

}  // namespace

TEST("a call whose task ended before its sender could forget the block that was sent leaves nothing") {
  Scene scene;
  const GlobalPointer record = Queue::make_record(scene.dying, kElsewhere).value();
  const GlobalPointer call = scene.make_call(record);
  CHECK(scene.dying.set_owner(call, owner_word(OwnerKind::in_transit, scene.second)));
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  server::deliver_here(*scene.host.heap, record, RecordState::done, make_block(*scene.host.heap, 50), remote, made);
  scene.reap();
}

TEST("a record that names a call which was never sent goes at once, and the call with it") {
  Scene scene;
  const GlobalPointer record = Queue::make_record(scene.dying, kElsewhere).value();
  CHECK(!scene.make_call(record).is_null());
  scene.reap();
}

TEST("a version that a joiner had not taken out of a completion that he had opened goes with him") {
  for (const bool is_taken : {false, true}) {
    Scene scene;
    const GlobalPointer version = make_block(*scene.host.heap, 10);
    CHECK(scene.host.heap->set_owner(version, owner_word(OwnerKind::none, {})));
    const GlobalPointer completion = make_block(*scene.host.heap, 10, {version}, ChildPointer::kMutable);
    Block block = block_at(*scene.host.partition, completion.address);
    block.header().codec = tasks::kCompletionCodec;
    CHECK(scene.host.heap->set_owner(completion, owner_word(OwnerKind::process, scene.second)));
    if (is_taken) block.children()[0].flags |= ChildPointer::kShared;
    scene.reaper.reap(scene.second, 0, "killed");
    CHECK_EQ(scene.host.partition->find(version.address, version.colour).ok(), is_taken);
    CHECK(!scene.host.partition->find(completion.address, completion.colour).ok());
  }
}

// A task of a server that is lost, in the queue here, with one lend.
namespace {

struct Orphan {
  Scene scene;
  GlobalPointer lent = make_block(*scene.host.heap, 10);
  GlobalPointer call;
  GlobalPointer record{Address::make(kElsewhere, 64 * 1024), (5ULL << 48) | 17, 104};
  explicit Orphan(std::uint64_t flags) : call(make_block(*scene.host.heap, 10, {lent}, flags)) {
    CHECK(scene.host.heap->set_owner(call, owner_word(OwnerKind::queue, {})));
    CHECK(scene.queue.push(call, record).ok());
  }
  [[nodiscard]] bool is_live(const GlobalPointer& block) const {
    return scene.host.partition->find(block.address, block.colour).ok();
  }
};

constexpr std::uint64_t kRelentMutably = ChildPointer::kMutable | ChildPointer::kRelent;

}  // namespace

TEST("a task that waits for a lost server is gone when the fence is closed, one of its next incarnation stays") {
  for (const std::uint16_t incarnation : {std::uint16_t{4}, std::uint16_t{5}}) {
    Orphan orphan(kRelentMutably);
    orphan.scene.reaper.lose(kElsewhere, incarnation);
    CHECK(orphan.scene.reaper.fence().is_closed);
    CHECK_EQ(orphan.scene.queue.ready(), incarnation == 4 ? 1U : 0U);
    CHECK_EQ(orphan.is_live(orphan.call), incarnation == 4);
    CHECK(orphan.is_live(orphan.lent));
  }
}

TEST("the fence is open while a task runs that was lent what its lost lender had on loan, and names its worker") {
  Orphan orphan(kRelentMutably);
  Scene& scene = orphan.scene;
  Queue theirs(scene.dying);
  CHECK(theirs.take(0).ok());
  CHECK(scene.reaper.fence().is_closed);  // nobody is lost
  scene.reaper.lose(kElsewhere, 5);
  server::Reaper::Fence fence = scene.reaper.fence();
  CHECK(!fence.is_closed);
  CHECK_EQ(fence.pids.size(), 1U);
  scene.reaper.reap(scene.second, 0, "killed");
  CHECK(scene.reaper.fence().is_closed);
  CHECK(!orphan.is_live(orphan.call));
  CHECK(orphan.is_live(orphan.lent));  // it was not written in place
  CHECK_EQ(scene.queue.running(), 0U);
}

TEST("what an orphan wrote in place has another version when the fence is closed") {
  Orphan orphan(kRelentMutably);
  Queue theirs(orphan.scene.dying);
  const auto entry = theirs.take(0);
  CHECK(entry.ok());
  theirs.forbid_rollback(entry.value());
  orphan.scene.reaper.lose(kElsewhere, 5);
  orphan.scene.reaper.reap(orphan.scene.second, 0, "killed");
  CHECK(orphan.scene.reaper.fence().is_closed);
  CHECK(!orphan.is_live(orphan.lent));
  CHECK(orphan.scene.host.partition->find(orphan.lent.address, kNoColour).ok());
}

TEST("the fence waits for what an orphan had lent on") {
  Orphan orphan(kRelentMutably);
  Scene& scene = orphan.scene;
  Queue theirs(scene.dying);
  const auto entry = theirs.take(0);
  CHECK(entry.ok());
  const ChildPointer lend{orphan.lent.address.raw(), orphan.lent.colour, orphan.lent.extent_bytes, kRelentMutably};
  const GlobalPointer below = Queue::make_record(scene.dying, 3, {&lend, 1}, entry.value().id()).value();
  CHECK(scene.make_call(below).address.offset_bytes() != 0);
  Queue::find_record(*scene.host.partition, below)->call.store(tasks::Record::kCallArrived);
  scene.reaper.lose(kElsewhere, 5);
  scene.reaper.reap(scene.second, 0, "killed");
  server::Reaper::Fence fence = scene.reaper.fence();
  CHECK(!fence.is_closed);
  CHECK_EQ(fence.pids.size(), 0U);  // its own worker is dead
  std::vector<GlobalPointer> remote;
  std::vector<GlobalPointer> made;
  server::deliver_here(*scene.host.heap, below, RecordState::done, {}, remote, made);
  CHECK_EQ(scene.reaper.tend(), 0U);
  CHECK(scene.reaper.fence().is_closed);
}

TEST("a task that runs for a lost server without such a lend goes on") {
  Orphan orphan(ChildPointer::kMutable);
  Queue theirs(orphan.scene.dying);
  CHECK(theirs.take(0).ok());
  orphan.scene.reaper.lose(kElsewhere, 5);
  CHECK(orphan.scene.reaper.fence().is_closed);
  CHECK_EQ(orphan.scene.queue.running(), 1U);
}
