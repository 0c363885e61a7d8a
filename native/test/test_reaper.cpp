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
