// How an outcome reaches its record when the record's server cannot take it as it is.
#include <array>

#include "server/deliver.hpp"
#include "server/lent.hpp"
#include "test/harness.hpp"
#include "test/host.hpp"

using namespace drust;
using namespace drust::heap;
using tasks::Queue;
using tasks::RecordState;
using test::Host;
using test::pattern;

namespace {

constexpr ServerId kJoiner = 1;
constexpr ServerId kWorker = 2;

// A joiner's server, and the server that ran his task.
struct Scene {
  Host home{kJoiner, 4ULL << 20};
  Host away{kWorker};
  GlobalPointer record;
  Scene() {
    CHECK(home.serve().ok() && away.serve().ok());
    home.know(away);
    away.know(home);
    record = Queue::make_record(*home.heap, kWorker).value();
  }
  // Until not one more block of any size finds room.
  void fill_home() {
    for (std::uint64_t bytes = 1ULL << 20; bytes >= 16; bytes /= 2) {
      const std::array<std::uint64_t, 1> sizes = {bytes};
      for (;;) {
        const auto address = home.heap->allocate({.codec = 1, .buffer_bytes = sizes});
        if (!address.ok()) break;
        static_cast<void>(home.heap->publish(address.value()));
      }
    }
  }
  // A completion with a result of its own, a new version of something lent and one that stayed where it lies.
  GlobalPointer complete_with(const GlobalPointer& result, const GlobalPointer& version, const GlobalPointer& lent) {
    CHECK(away.heap->set_owner(version, owner_word(OwnerKind::none, {})));
    const GlobalPointer completion = away.make_parent({result, version, lent});
    const auto children = away.block(completion.address).children();
    children[1].flags = ChildPointer::kMutable;
    children[2].flags = ChildPointer::kShared;
    away.block(completion.address).header().codec = tasks::kCompletionCodec;
    return completion;
  }
  Status deliver(RecordState state, const GlobalPointer& block, bool is_forbidden) {
    return server::deliver(*away.heap, *away.peers, record, state, block, is_forbidden);
  }
  [[nodiscard]] RecordState state() { return Queue::look(*home.partition, record).value(); }
};

}  // namespace

TEST("a joiner whose server has no room for a completion is told so, and nothing is left of what it brought") {
  for (const bool is_forbidden : {false, true}) {
    Scene scene;
    const GlobalPointer lent = scene.away.make(pattern(10));
    const GlobalPointer completion =
        scene.complete_with(scene.away.make(pattern(10)), scene.away.make(pattern(10)), lent);
    scene.fill_home();
    const std::uint64_t blocks = scene.home.partition->live_blocks();
    CHECK(scene.deliver(RecordState::done, completion, is_forbidden).ok());
    CHECK(scene.state() == (is_forbidden ? RecordState::refused_poisoned : RecordState::refused));
    const auto waited = Queue::wait(*scene.home.partition, scene.record, 0);
    CHECK(waited.ok() && waited.value()->completion().is_null());
    CHECK(scene.away.is_live(lent));
    CHECK_EQ(scene.away.partition->live_blocks(), 1U);
    CHECK_EQ(scene.home.partition->live_blocks(), blocks);
    std::vector<GlobalPointer> remote;
    CHECK(!Queue::drop_record(*scene.home.heap, scene.record, remote));
    CHECK_EQ(scene.home.partition->live_blocks(), blocks - 1);
  }
}

TEST("a loss whose report finds no room is told without it") {
  Scene scene;
  const GlobalPointer report = scene.away.make(pattern(100), tasks::kLossCodec);
  scene.fill_home();
  CHECK(scene.deliver(RecordState::lost, report, true).ok());
  CHECK(scene.state() == RecordState::lost);
  CHECK_EQ(scene.away.partition->live_blocks(), 0U);
}

TEST("a completion that finds room arrives whole") {
  Scene scene;
  const GlobalPointer completion = scene.complete_with(scene.away.make(pattern(10)), scene.away.make(pattern(10)),
                                                       scene.away.make(pattern(10)));
  CHECK(scene.deliver(RecordState::done, completion, true).ok());
  CHECK(scene.state() == RecordState::done);
  CHECK_EQ(scene.away.partition->live_blocks(), 3U);
}

TEST("a lender finds what was written in place, on any server, and what he may free") {
  Scene scene;
  const GlobalPointer there = scene.away.make(pattern(1000));
  const GlobalPointer parent = scene.home.make_parent({there, scene.home.make(pattern(10))});
  const auto look = [&](const GlobalPointer& lent) {
    return server::look_at_lent(*scene.home.heap, *scene.home.peers, lent, kNoServer);
  };
  CHECK(!look(there).is_written && look(there).now == there);
  CHECK(!look(parent).is_written && look(parent).now == parent);
  const GlobalPointer written = scene.away.heap->recolour(there).value();
  CHECK(look(there).is_written && look(there).now == written);
  const server::Lent found = look(parent);
  CHECK(found.is_written && found.now.colour != parent.colour && scene.home.is_live(found.now));
  CHECK(scene.home.block(parent.address).children()[0].pointer() == written);
  CHECK(!look(found.now).is_written);
  CHECK(scene.away.heap->free_shallow(written).ok());
  CHECK(!look(found.now).is_written && look(written).now.is_null());
}

TEST("a block that somebody died over while he wrote it counts as written, on any server") {
  Scene scene;
  const GlobalPointer there = scene.away.make(pattern(1000));
  const GlobalPointer here = scene.home.make(pattern(1000));
  const GlobalPointer parent = scene.home.make_parent({there, here});
  const auto look = [&](const GlobalPointer& lent) {
    return server::look_at_lent(*scene.home.heap, *scene.home.peers, lent, kNoServer);
  };
  scene.away.heap->begin_writing(there);
  CHECK(look(there).is_written && look(there).now == there);  // its own server draws the colour
  CHECK(look(parent).is_written);
  scene.away.heap->end_writing(there);
  CHECK(!look(there).is_written);
  scene.home.heap->begin_writing(here);
  const server::Lent found = look(parent);
  CHECK(found.is_written && found.now.colour != parent.colour);
  const GlobalPointer fresh = scene.home.block(parent.address).children()[1].pointer();
  CHECK(fresh.address == here.address && fresh.colour != here.colour && scene.home.is_live(fresh));
  CHECK(!look(found.now).is_written);
}

TEST("a table is not corrected to name a block that got the address later") {
  Scene scene;
  const GlobalPointer there = scene.away.make(pattern(1000));
  const GlobalPointer parent = scene.home.make_parent({there});
  CHECK(scene.away.heap->free_shallow(there).ok());
  const GlobalPointer other = scene.away.make(pattern(1000));
  CHECK(other.address == there.address);
  const server::Lent found = server::look_at_lent(*scene.home.heap, *scene.home.peers, parent, kNoServer);
  CHECK(found.is_written && found.now == parent);
  CHECK(scene.home.block(parent.address).children()[0].pointer() == there);
}
