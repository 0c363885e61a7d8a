// Allocating, publishing, freeing: one process, many threads. Processes that are killed:
// test_heap_crashes.cpp.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "base/limits.hpp"
#include "heap/arena.hpp"
#include "heap/segments.hpp"
#include "heap/size_classes.hpp"
#include "test/harness.hpp"
#include "test/heap_fixture.hpp"

using namespace drust;
using namespace drust::heap;
using test::block_at;
using test::Host;
using test::make_block;

TEST("a published block is found by its colour, an unpublished one is not") {
  Host host;
  const std::vector<std::uint64_t> sizes = {100, 0, 5000};
  const auto address =
      host.heap->allocate({.codec = 4, .child_count = 2, .meta_bytes = 33, .buffer_bytes = sizes});
  if (!CHECK(address.ok())) return;
  CHECK(host.partition->find(address.value(), kNoColour).status().code() == Code::not_found);
  const GlobalPointer pointer = host.heap->publish(address.value());
  auto found = host.partition->find(pointer.address, pointer.colour);
  if (!CHECK(found.ok())) return;
  const Block block = found.value();
  CHECK_EQ(block.header().codec, 4U);
  CHECK_EQ(block.header().value_bytes, 5100U);
  CHECK_EQ(block.header().extent_bytes, pointer.extent_bytes);
  CHECK_EQ(block.children().size(), 2U);
  CHECK_EQ(block.meta().size(), 33U);
  CHECK_EQ(block.buffer(0).size(), 100U);
  CHECK_EQ(block.buffer(2).size(), 5000U);
  for (std::uint32_t index = 0; index < 3; ++index) CHECK_EQ(block.buffers()[index].offset_bytes % 64, 0U);
  CHECK(block.buffer(2).data() + 5000 == block.start() + pointer.extent_bytes);
  CHECK_EQ(pointer.colour >> 48, 7U);
  CHECK(host.partition->find(pointer.address, pointer.colour + 1).status().code() == Code::stale);
  CHECK(host.partition->find(pointer.address, kNoColour).ok());
}

TEST("blocks of every size are aligned, apart, and come back whole") {
  Host host(256ULL << 20);
  std::vector<std::pair<GlobalPointer, std::uint8_t>> blocks;
  std::uint8_t mark = 1;
  for (std::uint64_t bytes = 0; bytes <= 3 * kSmallBlockBytesMax; bytes += 1 + bytes / 7, ++mark) {
    for (int copy = 0; copy < 3; ++copy) {
      const GlobalPointer pointer = make_block(*host.heap, bytes);
      CHECK_EQ(pointer.address.offset_bytes() % kBlockAlignment, 0U);
      std::memset(block_at(*host.partition, pointer.address).buffer(0).data(), mark, bytes);
      blocks.emplace_back(pointer, mark);
    }
  }
  CHECK_EQ(host.partition->live_blocks(), blocks.size());
  for (const auto& [pointer, expected] : blocks) {
    const auto buffer = block_at(*host.partition, pointer.address).buffer(0);
    CHECK(std::all_of(buffer.begin(), buffer.end(), [&](std::byte b) { return b == std::byte{expected}; }));
    CHECK(host.heap->free_shallow(pointer).ok());
  }
  CHECK_EQ(host.partition->live_blocks(), 0U);
  host.heap->reclaim();
  CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
}

TEST("a block freed twice, or freed late after its address was used again, hits nothing") {
  Host host;
  const GlobalPointer first = make_block(*host.heap, 500);
  CHECK(host.heap->free_shallow(first).ok());
  CHECK(host.heap->free_shallow(first).code() == Code::stale);
  const GlobalPointer second = make_block(*host.heap, 500);
  CHECK_EQ(second.address.raw(), first.address.raw());
  CHECK(host.heap->free_shallow(first).code() == Code::stale);
  CHECK(host.partition->find(second.address, second.colour).ok());
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free({second.address, kNoColour, 0}, remote).code() == Code::stale);
  CHECK(host.heap->free(second, remote).ok());
}

TEST("a mutable borrow's end gives a fresh colour, and only to the version it names") {
  Host host;
  const GlobalPointer before = make_block(*host.heap, 64);
  const auto after = host.heap->recolour(before);
  if (!CHECK(after.ok())) return;
  CHECK(after.value().colour != before.colour);
  CHECK_EQ(after.value().extent_bytes, before.extent_bytes);
  CHECK(host.heap->recolour(before).status().code() == Code::stale);
  CHECK(host.heap->free_shallow(before).code() == Code::stale);
  CHECK(host.heap->free_shallow(after.value()).ok());
}

TEST("freeing a tree frees what it owns, reports what is elsewhere, and spares what was lent") {
  Host host;
  const GlobalPointer leaf = make_block(*host.heap, 10);
  const GlobalPointer large = make_block(*host.heap, 300'000);
  const GlobalPointer lent = make_block(*host.heap, 10);
  const GlobalPointer elsewhere{Address::make(5, 4096), (9ULL << 48) | 77, 128};
  const GlobalPointer lender = make_block(*host.heap, 0, {lent}, ChildPointer::kShared);
  const GlobalPointer middle = make_block(*host.heap, 70'000, {leaf, large, elsewhere, lender});
  const GlobalPointer root = make_block(*host.heap, 0, {middle, middle, {}});  // named twice: freed once
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free(root, remote).ok());
  CHECK_EQ(host.partition->live_blocks(), 1U);
  CHECK(host.partition->find(lent.address, lent.colour).ok());
  if (CHECK_EQ(remote.size(), 1U)) CHECK(remote[0] == elsewhere);
  CHECK(host.heap->free(elsewhere, remote).ok());
  CHECK_EQ(remote.size(), 2U);
  CHECK(host.heap->free(root, remote).code() == Code::stale);
  CHECK(host.heap->free_shallow(lent).ok());
}

TEST("a version that a borrower made goes without the children that it shares with its pre-image") {
  Host host;
  // Whose it is, or how it is freed once it is nobody's, says that it is one.
  for (const auto& [is_borrowers, is_made] : {std::pair{false, false}, {true, false}, {false, true}}) {
    const GlobalPointer child = make_block(*host.heap, 10);
    const GlobalPointer version = make_block(*host.heap, 10, {child}, ChildPointer::kKept);
    if (is_borrowers) CHECK(host.heap->set_owner(version, owner_word(OwnerKind::borrower, host.process)));
    std::vector<GlobalPointer> remote;
    CHECK((is_made ? host.heap->free_made(version, remote) : host.heap->free(version, remote)).ok());
    CHECK(!host.partition->find(version.address, version.colour).ok());
    CHECK_EQ(host.partition->find(child.address, child.colour).ok(), is_borrowers || is_made);
  }
}

TEST("a version inside a version goes with it, without the children that it shares with its own pre-image") {
  Host host;
  const GlobalPointer child = make_block(*host.heap, 10);
  const GlobalPointer inner = make_block(*host.heap, 10, {child}, ChildPointer::kKept);
  const GlobalPointer fresh = make_block(*host.heap, 10);
  const GlobalPointer around = make_block(*host.heap, 10, {fresh});
  const GlobalPointer outer = make_block(*host.heap, 10, {inner, around});
  CHECK(host.heap->set_owner(inner, parent_word(outer.address)));
  CHECK(host.heap->set_owner(around, parent_word(outer.address)));
  CHECK(host.heap->set_owner(outer, owner_word(OwnerKind::borrower, host.process)));
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free(outer, remote).ok());
  CHECK(host.partition->find(child.address, child.colour).ok());
  CHECK_EQ(host.partition->live_blocks(), 1U);
}

TEST("a shallow free leaves the children, and a tree that names itself ends") {
  Host host;
  const GlobalPointer child = make_block(*host.heap, 10);
  const GlobalPointer root = make_block(*host.heap, 200'000, {child});
  CHECK(host.heap->free_shallow(root).ok());
  CHECK(host.partition->find(child.address, child.colour).ok());
  const GlobalPointer loop = make_block(*host.heap, 0, {child});
  block_at(*host.partition, loop.address).children()[0] = {loop.address.raw(), loop.colour, loop.extent_bytes,
                                                           0};
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free(loop, remote).ok());
  CHECK_EQ(host.partition->live_blocks(), 1U);
}

TEST("what was noted of a block's bytes ends with the block, whoever gets its memory next") {
  Host host;
  for (const std::uint64_t bytes : {10ULL, 3'000'000ULL}) {
    const GlobalPointer first = make_block(*host.heap, bytes);
    block_at(*host.partition, first.address).header().flags.store(kReplicated | kHasReplica | kAdopting);
    CHECK(host.heap->free_shallow(first).ok());
    const GlobalPointer second = make_block(*host.heap, bytes);
    CHECK(second.address == first.address);
    CHECK_EQ(block_at(*host.partition, second.address).header().flags.load(), 0U);
  }
}

TEST("a duplicate has the same bytes, another place and another colour") {
  Host host;
  const GlobalPointer child = make_block(*host.heap, 10);
  for (const std::uint64_t bytes : {100ULL, 1'000'000ULL}) {
    const GlobalPointer original = make_block(*host.heap, bytes, {child});
    std::memset(block_at(*host.partition, original.address).buffer(0).data(), 42, bytes);
    const auto copy = host.heap->duplicate(original);
    if (!CHECK(copy.ok())) continue;
    CHECK(copy.value().address != original.address && copy.value().colour != original.colour);
    const Block block = block_at(*host.partition, copy.value().address);
    CHECK(Block::is_well_formed(block.start(), copy.value().extent_bytes));
    CHECK_EQ(block.children()[0].address, child.address.raw());
    CHECK(block.buffer(0)[bytes - 1] == std::byte{42});
    CHECK(host.heap->free_shallow(original).ok());
    CHECK(!host.heap->duplicate(original).ok());
  }
}

TEST("received bytes are published when their tables fit and refused when anything sticks out") {
  Host host;
  const std::vector<std::uint64_t> sizes = {100, 200};
  const auto source =
      host.heap->allocate({.codec = 5, .child_count = 1, .meta_bytes = 7, .buffer_bytes = sizes});
  if (!CHECK(source.ok())) return;
  const Block original = block_at(*host.partition, source.value());
  original.children()[0] = {};
  const GlobalPointer pointer = host.heap->publish(source.value());

  const auto receive = [&](auto&& spoil) {
    const auto address = host.heap->allocate_extent(pointer.extent_bytes);
    const Block block = block_at(*host.partition, address.value());
    std::memcpy(block.start() + sizeof(BlockHeader), original.start() + sizeof(BlockHeader),
                pointer.extent_bytes - sizeof(BlockHeader));
    alignas(BlockHeader) std::byte bytes[sizeof(BlockHeader)];
    std::memcpy(bytes, original.start(), sizeof bytes);
    auto& sent = *reinterpret_cast<BlockHeader*>(bytes);
    auto* buffers = reinterpret_cast<BufferSpan*>(block.start() + sizeof(BlockHeader) + sizeof(ChildPointer));
    spoil(sent, buffers, reinterpret_cast<ChildPointer*>(block.start() + sizeof(BlockHeader)));
    return host.heap->publish_received(address.value(), sent);
  };
  using Header = BlockHeader&;
  const auto good = receive([](Header, BufferSpan*, ChildPointer*) {});
  if (CHECK(good.ok())) CHECK_EQ(block_at(*host.partition, good.value().address).header().codec, 5U);
  const std::uint64_t live = host.partition->live_blocks();
  const auto refused = [&](auto&& spoil) { return receive(spoil).status().code() == Code::bad_request; };
  CHECK(refused([](Header h, BufferSpan*, ChildPointer*) { h.extent_bytes += 64; }));
  CHECK(refused([](Header h, BufferSpan*, ChildPointer*) { h.child_count = 0xffffffffU; }));
  CHECK(refused([](Header h, BufferSpan*, ChildPointer*) { h.buffer_count = 0xffffffffU; }));
  CHECK(refused([](Header h, BufferSpan*, ChildPointer*) { h.meta_bytes = 0xffffffffU; }));
  CHECK(refused(
      [](Header h, BufferSpan*, ChildPointer*) { h.buffer_count = 1; }));  // bytes nobody accounts for
  CHECK(refused([](Header h, BufferSpan*, ChildPointer*) { h.value_bytes = 1; }));
  CHECK(refused([](Header, BufferSpan* b, ChildPointer*) { b[0].offset_bytes += 1; }));
  CHECK(refused([](Header, BufferSpan* b, ChildPointer*) { b[0].offset_bytes = 0; }));  // over the header
  CHECK(refused([](Header, BufferSpan* b, ChildPointer*) { b[1].offset_bytes = ~63ULL; }));
  CHECK(refused([](Header, BufferSpan* b, ChildPointer*) { b[1].bytes = ~0ULL; }));
  CHECK(refused([](Header, BufferSpan* b, ChildPointer*) { b[0].bytes = 200; }));  // into the next
  CHECK(refused([](Header, BufferSpan*, ChildPointer* c) { c[0].flags = 1ULL << 40; }));
  CHECK_EQ(host.partition->live_blocks(), live);
  CHECK(!host.heap->allocate_extent(10).ok());
}

TEST("out of memory leaves everything as it was, and says what was asked and what there is") {
  Host host(8ULL << 20);
  const GlobalPointer held = make_block(*host.heap, 6ULL << 20);
  const Usage before = host.partition->usage();
  const std::vector<std::uint64_t> sizes = {4ULL << 20};
  const auto refused = host.heap->allocate({.buffer_bytes = sizes});
  CHECK(refused.status().code() == Code::out_of_memory);
  CHECK(refused.status().detail().find("quota 8388608") != std::string::npos);
  CHECK_EQ(host.partition->usage().claimed_bytes, before.claimed_bytes);
  CHECK(host.heap->free_shallow(held).ok());
  CHECK(!make_block(*host.heap, 4ULL << 20).is_null());
  const std::vector<std::uint64_t> absurd = {~0ULL, ~0ULL};
  CHECK(host.heap->allocate({.buffer_bytes = absurd}).status().code() == Code::out_of_memory);
}

TEST("the whole quota can be handed out, in small blocks and again in one large one") {
  Host host(8ULL << 20);
  std::vector<GlobalPointer> blocks;
  for (GlobalPointer block = make_block(*host.heap, 944); !block.is_null();
       block = make_block(*host.heap, 944)) {
    blocks.push_back(block);
  }
  CHECK_EQ(host.partition->usage().claimed_bytes, 8U << 20);
  const SizeClass& shape = kClasses[class_of(blocks[0].extent_bytes)];
  CHECK_EQ(blocks.size(), (8ULL << 20) / kSegmentBytes / shape.segments * shape.blocks);
  for (const GlobalPointer& block : blocks) CHECK(host.heap->free_shallow(block).ok());
  const GlobalPointer large = make_block(*host.heap, (8ULL << 20) - 4096);
  CHECK(!large.is_null());
  CHECK(host.heap->free_shallow(large).ok());
}

TEST(
    "memory comes back from what others freed and from the pressure hook before an answer is out of memory") {
  Host host(4ULL << 20);
  const ProcessId second = host.join();
  Heap other(*host.partition, second);
  std::vector<GlobalPointer> blocks;
  for (GlobalPointer block = make_block(*host.heap, 4000); !block.is_null();
       block = make_block(*host.heap, 4000)) {
    blocks.push_back(block);
  }
  CHECK(make_block(other, 100'000).is_null());
  for (const GlobalPointer& block : blocks) CHECK(other.free_shallow(block).ok());
  CHECK(!make_block(*host.heap, 3'000'000).is_null());  // its own spans, emptied by the other

  GlobalPointer victim = make_block(*host.heap, 500'000);
  if (!CHECK(!victim.is_null())) return;
  CHECK(make_block(*host.heap, 700'000).is_null());
  std::uint64_t asked = 0;
  host.heap->set_pressure_hook([&](std::uint64_t bytes) -> std::uint64_t {
    asked = bytes;
    if (victim.is_null()) return 0;
    CHECK(host.heap->free_shallow(victim).ok());
    victim = {};
    return 500'000;
  });
  CHECK(!make_block(*host.heap, 700'000).is_null());
  CHECK(asked >= 700'000);
  CHECK(make_block(*host.heap, 700'000).is_null());
}

TEST("blocks freed by another process are used again by their owner without new segments") {
  Host host;
  const ProcessId second = host.join();
  Heap other(*host.partition, second);
  std::uint64_t claimed = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<GlobalPointer> blocks;
    for (int index = 0; index < 2000; ++index) blocks.push_back(make_block(*host.heap, 200));
    for (const GlobalPointer& block : blocks) CHECK(other.free_shallow(block).ok());
    if (round == 1) claimed = host.partition->usage().claimed_bytes;
  }
  CHECK_EQ(host.partition->usage().claimed_bytes, claimed);
}

TEST(
    "a block that was freed, collected and taken again before its free list entry was made is not handed out "
    "twice") {
  Host host;
  Segments segments(host.partition->writable(0), host.partition->memfd());
  Arena arena(segments, host.partition->writable(0), host.join());
  const auto taken = arena.take(3);
  Place place;
  if (!CHECK(taken.ok() && segments.locate(taken.value(), place))) return;
  arena.enter(place);  // late: the block is being filled by now
  const auto next = arena.take(3);
  CHECK(next.ok() && next.value() != taken.value());
  reinterpret_cast<BlockHeader*>(host.partition->writable(taken.value()))->state = kFree;
  arena.enter(place);
  arena.enter(place);
  CHECK_EQ(arena.take(3).value(), taken.value());
  CHECK(arena.take(3).value() != taken.value());
}

TEST("an owner word is set on the version named and on no other") {
  Host host;
  const GlobalPointer block = make_block(*host.heap, 10);
  const std::uint64_t word = owner_word(OwnerKind::queue, {12, 345});
  CHECK(owner_kind(word) == OwnerKind::queue);
  CHECK(owner_process(word) == (ProcessId{12, 345}));
  CHECK(host.heap->set_owner(block, word));
  CHECK_EQ(block_at(*host.partition, block.address).header().owner.load(), word);
  CHECK(!host.heap->set_owner({block.address, block.colour + 1, 0}, word));
}

TEST("colours drawn by several threads and processes never repeat") {
  Host host;
  Heap other(*host.partition, host.join());
  std::vector<std::vector<Colour>> drawn(4);
  std::vector<std::thread> threads;
  for (std::size_t index = 0; index < drawn.size(); ++index) {
    threads.emplace_back([&, index] {
      Heap& heap = index % 2 == 0 ? *host.heap : other;
      for (int count = 0; count < 50'000; ++count) drawn[index].push_back(heap.draw_colour());
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<Colour> all;
  for (const auto& colours : drawn) all.insert(colours.begin(), colours.end());
  CHECK_EQ(all.size(), 200'000U);
  CHECK(std::all_of(all.begin(), all.end(),
                    [](Colour colour) { return is_colour(colour) && colour >> 48 == 7; }));
}

TEST("threads that allocate, hand over and free each other's blocks keep every byte apart") {
  Host host;
  Heap other(*host.partition, host.join());
  std::atomic<std::uint64_t> exchange[64] = {};
  GlobalPointer given[4096];
  std::atomic<std::uint32_t> next{0};
  std::vector<std::thread> threads;
  for (std::uint32_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      Heap& heap = seed % 2 == 0 ? *host.heap : other;
      std::mt19937 random(seed);
      for (int step = 0; step < 1000; ++step) {
        const std::uint64_t bytes = random() % 8 == 0 ? 70'000 + random() % 100'000 : random() % 3000;
        const GlobalPointer made = make_block(heap, bytes);
        if (!CHECK(!made.is_null())) return;
        std::memset(block_at(heap.partition(), made.address).buffer(0).data(), static_cast<int>(seed), bytes);
        const std::uint32_t mine = next.fetch_add(1);
        given[mine] = made;
        const std::uint64_t taken = exchange[random() % 64].exchange(std::uint64_t{mine} + 1);
        if (taken != 0) CHECK(heap.free_shallow(given[taken - 1]).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (auto& left : exchange) {
    if (left.load() != 0) CHECK(host.heap->free_shallow(given[left.load() - 1]).ok());
  }
  CHECK_EQ(host.partition->live_blocks(), 0U);
  host.heap->reclaim();
  other.reclaim();
  CHECK_EQ(host.partition->usage().claimed_bytes, 0U);
}

TEST("an adopted arena keeps its live blocks, loses its unfinished ones, and is used again") {
  Host host;
  const ProcessId second = host.join();
  auto other = std::make_unique<Heap>(*host.partition, second);
  const GlobalPointer kept = make_block(*other, 100);
  const GlobalPointer large = make_block(*other, 200'000);
  const std::vector<std::uint64_t> sizes = {100};
  CHECK(other->allocate({.buffer_bytes = sizes}).ok());
  CHECK(other->allocate_extent(500'000).ok());
  host.partition->declare_dead(second);
  host.heap->adopt(second);
  host.partition->release_process(second);
  CHECK_EQ(host.partition->live_blocks(), 2U);
  const std::uint64_t claimed = host.partition->usage().claimed_bytes;
  CHECK_EQ(claimed, kSegmentBytes + 4 * kSegmentBytes);
  for (int index = 0; index < 100; ++index) CHECK(!make_block(*host.heap, 100).is_null());
  CHECK_EQ(host.partition->usage().claimed_bytes, claimed);
  CHECK(host.heap->free_shallow(kept).ok());
  CHECK(host.heap->free_shallow(large).ok());
  std::vector<GlobalPointer> remote;
  CHECK_EQ(host.heap->free_owned_by(second, remote), 0U);
  CHECK_EQ(host.heap->free_owned_by(host.process, remote), 100U);
  other.reset();  // its slot is gone: it must not touch what was adopted
  CHECK_EQ(host.partition->live_blocks(), 0U);
}

TEST("a block is found while the segment of its dead maker changes hands") {
  Host host;
  ProcessId owner = host.join();
  auto heap = std::make_unique<Heap>(*host.partition, owner);
  const GlobalPointer block = make_block(*heap, 320);
  std::atomic<std::uint64_t> looks{0};
  std::atomic<std::uint64_t> missed{0};
  std::atomic<bool> is_over{false};
  std::thread finder([&] {
    while (!is_over.load()) {
      missed += host.partition->find(block.address, block.colour).ok() ? 0U : 1U;
      ++looks;
    }
  });
  for (int times = 0; times < 5000; ++times) {
    const std::uint64_t before = looks.load();
    const ProcessId heir = host.join();
    auto next = std::make_unique<Heap>(*host.partition, heir);
    host.partition->declare_dead(owner);
    next->adopt(owner);
    host.partition->release_process(owner);
    owner = heir;
    heap = std::move(next);
    while (looks.load() == before) std::this_thread::yield();
  }
  is_over = true;
  finder.join();
  CHECK_EQ(missed.load(), 0U);
  CHECK(heap->free_shallow(block).ok());
}

TEST("a small block is allocated and freed in a few hundred nanoseconds at most") {
  Host host;
  const std::vector<std::uint64_t> sizes = {64};
  constexpr int kRounds = 100'000;
  const auto start = std::chrono::steady_clock::now();
  for (int round = 0; round < kRounds; ++round) {
    const auto address = host.heap->allocate({.buffer_bytes = sizes});
    static_cast<void>(host.heap->free_shallow(host.heap->publish(address.value())));
  }
  const auto took = std::chrono::steady_clock::now() - start;
  const double nanoseconds = std::chrono::duration<double, std::nano>(took).count() / kRounds;
  std::printf("      allocate + publish + free: %.0f ns\n", nanoseconds);
  CHECK_EQ(host.partition->live_blocks(), 0U);
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  CHECK(nanoseconds < 3000);  // an order above the figure of an idle machine
#endif
}
