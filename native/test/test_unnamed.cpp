// Blocks that nobody names any more: who is suspected, where names are looked for, and that none that moves is missed.
#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "heap/watch.hpp"
#include "server/unnamed.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"
#include "test/shared_fixture.hpp"

using namespace drust;
using heap::OwnerKind;
using heap::owner_word;
using heap::parent_word;
using server::Unnamed;
using tasks::Queue;
using test::Host;
using test::make_block;

namespace {

struct Scene {
  Host host;
  Queue queue{*host.heap};
  server::Peers peers{*host.heap, {.token = {}}};
  Unnamed unnamed{*host.heap, queue, peers};

  GlobalPointer make(std::uint64_t owner, const std::vector<GlobalPointer>& children = {}) {
    const GlobalPointer block = make_block(*host.heap, 10, children);
    CHECK(host.heap->set_owner(block, owner));
    return block;
  }
  GlobalPointer make_nobodys() { return make(owner_word(OwnerKind::none, {})); }
  [[nodiscard]] bool suspects(const GlobalPointer& block) const {
    const auto all = unnamed.suspects(100);
    return std::ranges::find(all, block) != all.end();
  }
  [[nodiscard]] bool lives(const GlobalPointer& block) const {
    return host.partition->find(block.address, block.colour).ok();
  }
};

Unnamed::Addresses only(const GlobalPointer& block) { return {block.address.raw()}; }

}  // namespace

TEST("who says that nobody here owns a block, and that no table here names, is a suspect") {
  Scene scene;
  const GlobalPointer nobodys = scene.make_nobodys();
  const GlobalPointer gone = make_block(*scene.host.heap, 10);
  const GlobalPointer of_a_gone_parent = scene.make(parent_word(gone.address));
  CHECK(scene.host.heap->free_shallow(gone).ok());
  const GlobalPointer owned = make_block(*scene.host.heap, 10);
  CHECK(scene.suspects(nobodys));
  CHECK(scene.suspects(of_a_gone_parent));
  CHECK(!scene.suspects(owned));
  CHECK_EQ(scene.unnamed.suspects(1).size(), 1U);

  const GlobalPointer parent = make_block(*scene.host.heap, 10, {of_a_gone_parent});
  CHECK(!scene.suspects(of_a_gone_parent));
  CHECK(scene.suspects(nobodys));
  CHECK(scene.host.heap->free_shallow(parent).ok());
  CHECK(scene.suspects(of_a_gone_parent));
}

TEST("what a shared object names in its own words is no suspect") {
  Scene scene;
  test::Shared shared(scene.host);
  std::vector<GlobalPointer> remote;
  sync::put_value(*scene.host.heap, shared.object, *shared.words, make_block(*scene.host.heap, 200), remote);
  const GlobalPointer segment = scene.make(parent_word(shared.object.address));
  CHECK(!scene.suspects(segment));
  CHECK(scene.unnamed.suspects(100).empty());
}

TEST("names stand in child tables, but for those of copies, in records that have completed, and in entries") {
  Scene scene;
  const GlobalPointer block = scene.make_nobodys();
  CHECK(scene.unnamed.search(only(block)).empty());
  for (const std::uint64_t flags : {std::uint64_t{0}, heap::ChildPointer::kShared, heap::ChildPointer::kKept}) {
    const GlobalPointer parent = make_block(*scene.host.heap, 10, {block}, flags);
    CHECK_EQ(scene.unnamed.search(only(block)).size(), 1U);
    CHECK(scene.host.heap->free_shallow(parent).ok());
  }
  const GlobalPointer copy = scene.make(owner_word(OwnerKind::copy, scene.host.process), {block});
  CHECK(scene.unnamed.search(only(block)).empty());
  CHECK(scene.host.heap->free_shallow(copy).ok());
  const GlobalPointer record = Queue::make_record(*scene.host.heap, 3).value();
  CHECK(scene.unnamed.search(only(block)).empty());
  CHECK(Queue::complete(*scene.host.heap, record, tasks::RecordState::done, block) == tasks::Delivery::applied);
  CHECK_EQ(scene.unnamed.search(only(block)).size(), 1U);
  CHECK(scene.host.heap->free_shallow(record).ok());

  const GlobalPointer call = scene.make_nobodys();
  CHECK(scene.queue.push(call, record).ok());
  CHECK_EQ(scene.unnamed.search(only(call)).size(), 1U);
  const auto entry = scene.queue.take(0);
  CHECK(scene.queue.returned(entry.value(), block));
  CHECK_EQ(scene.unnamed.search(only(block)).size(), 1U);
  scene.queue.finish(entry.value());
  CHECK(scene.unnamed.search(only(block)).empty());
  CHECK(scene.unnamed.search(only(call)).empty());
}

TEST("names that appear are noted between watch and reveal, for the last that has asked for it") {
  Scene scene;
  const GlobalPointer block = scene.make_nobodys();
  static_cast<void>(make_block(*scene.host.heap, 10, {block}));
  const std::uint64_t first = scene.unnamed.watch();
  CHECK(scene.unnamed.reveal(only(block), first)->empty());
  CHECK(!scene.unnamed.reveal(only(block), first));  // it is over
  const std::uint64_t second = scene.unnamed.watch();
  static_cast<void>(make_block(*scene.host.heap, 10, {block}));
  const std::uint64_t third = scene.unnamed.watch();
  static_cast<void>(make_block(*scene.host.heap, 10, {block}));
  CHECK(!scene.unnamed.reveal(only(block), second));
  CHECK_EQ(scene.unnamed.reveal(only(block), third)->size(), 1U);
  CHECK(!scene.unnamed.reveal(only(block), 0));
}

TEST("more names than there is room for leave everything open") {
  Scene scene;
  const GlobalPointer block = scene.make_nobodys();
  const std::vector<GlobalPointer> many(1000, block);
  const std::uint64_t ticket = scene.unnamed.watch();
  for (std::uint64_t named = 0; named <= heap::Watch::kRows; named += many.size())
    CHECK(scene.host.heap->free_shallow(make_block(*scene.host.heap, 10, many)).ok());
  CHECK(!scene.unnamed.reveal(only(block), ticket));
}

TEST("an unnamed version leaves what its pre-image owns as well, until nobody names that either") {
  Scene scene;
  const GlobalPointer shared = make_block(*scene.host.heap, 10);
  const GlobalPointer pre_image = make_block(*scene.host.heap, 10, {shared});
  CHECK(scene.host.heap->set_owner(shared, parent_word(pre_image.address)));
  const GlobalPointer version = make_block(*scene.host.heap, 10, {shared}, heap::ChildPointer::kKept);
  CHECK(scene.host.heap->set_owner(version, owner_word(OwnerKind::none, {})));
  CHECK(scene.suspects(version));
  CHECK_EQ(scene.unnamed.free(scene.unnamed.suspects(9)), 1U);
  CHECK(!scene.lives(version) && scene.lives(shared) && scene.lives(pre_image));
  CHECK(scene.unnamed.suspects(9).empty());
  CHECK(scene.host.heap->free_shallow(pre_image).ok());
  CHECK_EQ(scene.unnamed.free(scene.unnamed.suspects(9)), 1U);
  CHECK(!scene.lives(shared));
}

TEST("where something that lives has no name, nobody knows what is unnamed") {
  Scene scene;
  const GlobalPointer block = scene.make_nobodys();
  scene.host.partition->watch().blind();
  CHECK(!scene.unnamed.reveal(only(block), scene.unnamed.watch()));
}

TEST("what is unnamed goes with what it owns, once, and not if somebody has taken it over or it is another version") {
  Scene scene;
  const std::uint64_t before = scene.host.partition->live_blocks();
  const GlobalPointer child = make_block(*scene.host.heap, 10);
  const GlobalPointer elsewhere{Address::make(9, 64), 7ULL << 48 | 5, 100};
  const GlobalPointer parent = scene.make(owner_word(OwnerKind::none, {}), {child, elsewhere});
  const GlobalPointer taken = scene.make(owner_word(OwnerKind::process, scene.host.process));
  const GlobalPointer written = scene.make_nobodys();
  const GlobalPointer now = scene.host.heap->recolour(written).value();
  const std::vector<GlobalPointer> asked = {parent, taken, written};
  CHECK_EQ(scene.unnamed.free(asked), 1U);
  CHECK(!scene.lives(parent) && !scene.lives(child));
  CHECK(scene.lives(taken) && scene.lives(now));
  CHECK_EQ(scene.unnamed.free(asked), 0U);
  CHECK_EQ(scene.host.partition->live_blocks(), before + 2);
}

// Like a served read, a search reads tables that others may be writing anew: what it finds then are no names.
#if !defined(__SANITIZE_THREAD__)
TEST("a name that moves from table to table, and from partition to partition, is never missed") {
  Scene here;
  Host other(64ULL << 20, 4ULL << 20, 4);
  Queue other_queue(*other.heap);
  server::Peers other_peers(*other.heap, {.token = {}});
  const Unnamed there(*other.heap, other_queue, other_peers);
  const GlobalPointer block = here.make_nobodys();
  std::atomic<bool> ends{false};
  GlobalPointer before = make_block(*here.host.heap, 10, {block});
  std::thread mover([&] {
    std::mt19937 random(7);
    heap::Heap* at = here.host.heap.get();
    while (!ends.load()) {
      heap::Heap* to = random() % 2 == 0 ? here.host.heap.get() : other.heap.get();
      const GlobalPointer fresh = make_block(*to, random() % 500, {block});
      static_cast<void>(at->free_shallow(before));
      before = fresh;
      at = to;
    }
  });
  int searches = 0;
  int revealed = 0;
  for (int round = 0; round < 2000; ++round) {
    const std::uint64_t ticket_here = here.unnamed.watch();
    const std::uint64_t ticket_there = there.watch();
    const bool is_found = !here.unnamed.search(only(block)).empty() || !there.search(only(block)).empty();
    const auto noted_here = here.unnamed.reveal(only(block), ticket_here);
    const auto noted_there = there.reveal(only(block), ticket_there);
    const bool is_noted = !noted_here || !noted_there || !noted_here->empty() || !noted_there->empty();
    CHECK(is_found || is_noted);
    searches += is_found ? 1 : 0;
    revealed += is_found ? 0 : 1;
  }
  ends.store(true);
  mover.join();
  CHECK(searches > 0);
  std::printf("found by the search %d times, by what was noted alone %d times\n", searches, revealed);
}
#endif
