// Tied children: who owns them when a parent gets a new version, and how they travel together.
#include <algorithm>
#include <string>

#include "server/operations.hpp"
#include "test/harness.hpp"
#include "test/heard.hpp"

using namespace drust;
using heap::ChildPointer;
using heap::Counter;
using server::Connection;
using test::Bench;
using test::Host;
using test::pattern;
using test::request;
using test::Visitor;
using wire::FreeItem;
using wire::Operation;
using Bytes = std::vector<std::byte>;

namespace {

// A parent of these children, each with its flags.
GlobalPointer make_group(Host& host, const std::vector<std::pair<GlobalPointer, std::uint64_t>>& children) {
  std::vector<GlobalPointer> pointers;
  for (const auto& [pointer, flags] : children) pointers.push_back(pointer);
  const GlobalPointer parent = host.make_parent(pointers);
  for (std::size_t index = 0; index < children.size(); ++index)
    host.block(parent.address).children()[index].flags = children[index].second;
  return parent;
}

constexpr std::uint64_t kTied = ChildPointer::kTied;
constexpr std::uint64_t kTheirs = ChildPointer::kTied | ChildPointer::kShared;

Status free_tree(Host& host, const GlobalPointer& parent) {
  std::vector<GlobalPointer> remote;
  return host.heap->free(parent, remote);
}

// Two versions of a parent: `kept` in both, `left` in the old one, `added` in the new one.
struct Versions {
  Host host{3};
  GlobalPointer kept = host.make(pattern(100));
  GlobalPointer left = host.make(pattern(100));
  GlobalPointer added = host.make(pattern(100));
  GlobalPointer old = make_group(host, {{kept, kTied}, {left, kTied}});
  GlobalPointer fresh = make_group(host, {{kept, kTheirs}, {added, kTied}});
};

}  // namespace

TEST("a new version that is given up leaves what it shares with the old one") {
  Versions v;
  CHECK(free_tree(v.host, v.fresh).ok());
  CHECK(v.host.is_live(v.kept));
  CHECK(!v.host.is_live(v.added));
  CHECK(free_tree(v.host, v.old).ok());
  CHECK_EQ(v.host.partition->live_blocks(), 0);
}

TEST("an old version that was passed on takes only what the new one does not have") {
  Versions v;
  CHECK(v.host.heap->pass_on(v.old, v.fresh));
  CHECK(free_tree(v.host, v.old).ok());
  CHECK(v.host.is_live(v.kept));
  CHECK(v.host.is_live(v.added));
  CHECK(!v.host.is_live(v.left));
  CHECK(free_tree(v.host, v.fresh).ok());
  CHECK_EQ(v.host.partition->live_blocks(), 0);
}

TEST("passing on twice, or to a version that is gone, changes no owner") {
  Versions v;
  CHECK(v.host.heap->pass_on(v.old, v.fresh));
  CHECK(v.host.heap->pass_on(v.old, v.fresh));
  CHECK(free_tree(v.host, v.old).ok());
  CHECK(!v.host.heap->pass_on(v.old, v.fresh));  // it is gone
  CHECK(free_tree(v.host, v.fresh).ok());
  CHECK_EQ(v.host.partition->live_blocks(), 0);
}

TEST("what a version has from its lender stays the lender's, however often it is passed on") {
  Host host(3);
  const GlobalPointer lent = host.make(pattern(100));
  const GlobalPointer own = host.make(pattern(100));
  const GlobalPointer lenders = make_group(host, {{lent, kTied}});
  const GlobalPointer first = make_group(host, {{lent, kTheirs}, {own, kTied}});
  const GlobalPointer second = make_group(host, {{lent, kTheirs}, {own, kTheirs}});
  CHECK(host.heap->pass_on(first, second));
  CHECK(free_tree(host, first).ok());
  CHECK(host.is_live(own));
  CHECK(free_tree(host, second).ok());  // its task died
  CHECK(!host.is_live(own));
  CHECK(host.is_live(lent));
  CHECK(free_tree(host, lenders).ok());
  CHECK_EQ(host.partition->live_blocks(), 0);
}

TEST("a column that was written in place is the same child under a new colour") {
  Host host(3);
  const GlobalPointer column = host.make(pattern(100));
  const GlobalPointer old = make_group(host, {{column, kTied}});
  const GlobalPointer written = host.heap->recolour(column).value();
  const GlobalPointer fresh = make_group(host, {{written, kTheirs}});
  CHECK(host.heap->pass_on(old, fresh));
  CHECK(free_tree(host, old).ok());
  CHECK(host.is_live(written));
  CHECK(free_tree(host, fresh).ok());
  CHECK_EQ(host.partition->live_blocks(), 0);
}

TEST("children that are not tied go with the content, and a block without tied ones is freed alone") {
  Host host(3);
  const GlobalPointer box = host.make(pattern(100));
  const GlobalPointer tied = host.make(pattern(100));
  const GlobalPointer both = make_group(host, {{box, 0}, {tied, kTied}});
  const GlobalPointer plain = make_group(host, {{box, 0}});
  std::vector<GlobalPointer> remote;
  CHECK(host.heap->free_tied(both, {}, remote).ok());
  CHECK(host.heap->free_tied(plain, {}, remote).ok());
  CHECK(remote.empty());
  CHECK(!host.is_live(tied));
  CHECK(host.is_live(box));
  CHECK_EQ(host.partition->live_blocks(), 1);
}

TEST("the tied children of a received parent are still the original's") {
  test::Host here(2);
  test::Host home(1);
  CHECK(home.serve().ok());
  here.know(home);
  const GlobalPointer column = home.make(pattern(100));
  const GlobalPointer parent = make_group(home, {{column, kTied}});
  const auto copy = here.peers->read_block(parent);
  if (!CHECK(copy.ok())) return;
  std::vector<GlobalPointer> remote;
  CHECK(here.heap->free(copy.value(), remote).ok());
  CHECK(remote.empty());
}

TEST("a free from elsewhere takes the tied children, all or those that no successor has") {
  Versions v;
  Bench bench;
  server::Operations operations(*v.host.heap, *v.host.queue, {[](const GlobalPointer&, std::uint64_t) {}});
  Visitor visitor(operations);
  const FreeItem items[2] = {{v.old.address.raw(), v.old.colour, FreeItem::kPassedOn},
                             {v.fresh.address.raw(), v.fresh.colour, FreeItem::kSuccessor}};
  for (int repeated = 0; repeated < 2; ++repeated) {
    visitor.pipe.say(request(Operation::free_blocks, {}, sizeof items));
    visitor.pipe.say(items);
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    CHECK(!v.host.is_live(v.old) && !v.host.is_live(v.left));
    CHECK(v.host.is_live(v.fresh) && v.host.is_live(v.kept) && v.host.is_live(v.added));
  }
  const FreeItem all{v.fresh.address.raw(), v.fresh.colour, FreeItem::kTied};
  visitor.pipe.say(request(Operation::free_blocks, {}, sizeof all));
  visitor.pipe.say(all);
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK_EQ(v.host.partition->live_blocks(), 0);
}

TEST("a batch that lacks a successor closes the connection before anything is freed") {
  Bench bench;
  Visitor visitor(bench.operations);
  const GlobalPointer block = bench.host.make(pattern(500));
  const FreeItem items[2] = {{block.address.raw(), block.colour, 0},
                             {block.address.raw(), block.colour, FreeItem::kPassedOn}};
  visitor.pipe.say(request(Operation::free_blocks, {}, sizeof items));
  visitor.pipe.say(items);
  CHECK_EQ(visitor.go(), Connection::Wants::close);
  CHECK(bench.host.is_live(block));
}

TEST("a pair is never cut by the end of a batch") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  std::vector<GlobalPointer> kept;
  for (int index = 0; index < 100; ++index) {
    const GlobalPointer shared = home.make(pattern(64));
    const GlobalPointer old = make_group(home, {{shared, kTied}});
    kept.push_back(make_group(home, {{shared, kTheirs}}));
    if (index % 3 == 0) here.peers->free_later(home.make(pattern(64)), false);  // odd and even places
    here.peers->free_tied_later(old, kept.back());
  }
  here.peers->flush_frees();
  CHECK(here.peers->ping(1).ok());
  const auto is_done = [&] { return home.partition->live_blocks() == 2 * kept.size(); };
  for (int look = 0; look < 100'000 && !is_done(); ++look) static_cast<void>(here.peers->ping(1));
  CHECK(is_done());
  for (const GlobalPointer& parent : kept) here.peers->free_tied_later(parent, {});
  here.peers->flush_frees();
  for (int look = 0; look < 100'000 && home.partition->live_blocks() != 0; ++look)
    static_cast<void>(here.peers->ping(1));
  CHECK_EQ(home.partition->live_blocks(), 0);
  CHECK_EQ(home.counted(Counter::frames_rejected), 0);
}

// -- reading together

TEST("blocks of any size are read with one request, in their order") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  std::vector<GlobalPointer> remote;
  std::vector<Bytes> values;
  for (const std::size_t size : {2U, 1U, 63U, 700U, 20'000U, 100'000U, 5U, 1U << 22U, 64U}) {
    values.push_back(pattern(size));
    remote.push_back(home.make(values.back(), 40 + static_cast<std::uint32_t>(values.size())));
  }
  const auto copies = here.peers->read_blocks(remote);
  if (!CHECK(copies.ok())) return;
  CHECK_EQ(copies.value().size(), remote.size());
  for (std::size_t index = 0; index < remote.size(); ++index) {
    CHECK(here.bytes(copies.value()[index]) == values[index]);
    CHECK_EQ(here.block(copies.value()[index].address).header().codec, 41 + index);
    CHECK(home.is_live(remote[index]));
  }
  CHECK_EQ(here.counted(Counter::read_requests), 1);
  CHECK_EQ(home.counted(Counter::messages_served), 1);
  CHECK(here.peers->ping(1).ok());  // the connection stands at the start of a frame
}

TEST("more blocks than one request may name take several") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  std::vector<GlobalPointer> remote;
  for (std::uint32_t index = 0; index < 2 * kBlocksPerReadMax + 1; ++index)
    remote.push_back(home.make(pattern(1 + index % 300)));
  const auto copies = here.peers->read_blocks(remote);
  if (!CHECK(copies.ok())) return;
  for (std::size_t index = 0; index < remote.size(); ++index)
    CHECK(here.bytes(copies.value()[index]) == pattern(1 + index % 300));
  CHECK_EQ(here.counted(Counter::read_requests), 3);
}

TEST("a group of which one block is gone is not entered, and the connection goes on") {
  Host home(1);
  Host here(2);
  CHECK(home.serve().ok());
  here.know(home);
  for (const std::size_t size : {std::size_t{100}, std::size_t{200'000}}) {
    std::vector<GlobalPointer> remote = {home.make(pattern(size)), home.make(pattern(size)), home.make(pattern(size))};
    const GlobalPointer now = home.heap->recolour(remote[1]).value();
    CHECK_EQ(here.peers->read_blocks(remote).status().code(), Code::stale);
    CHECK_EQ(here.partition->live_blocks(), 0);
    remote[1] = now;
    remote[2].extent_bytes += 64;
    CHECK_EQ(here.peers->read_blocks(remote).status().code(), Code::bad_request);
    remote[2].extent_bytes -= 64;
    const auto copies = here.peers->read_blocks(remote);
    if (!CHECK(copies.ok())) return;
    for (const GlobalPointer& copy : copies.value()) CHECK(here.heap->free_shallow(copy).ok());
  }
}

TEST("blocks of two servers, or none that could be blocks, are refused here") {
  Host here(2);
  CHECK_EQ(here.peers->read_blocks(std::vector<GlobalPointer>{{Address::make(1, 4096), (1ULL << 48) | 1, 64},
                                                              {Address::make(3, 4096), (1ULL << 48) | 1, 64}})
               .status()
               .code(),
           Code::bad_request);
  CHECK_EQ(here.peers->read_blocks(std::vector<GlobalPointer>{{Address::make(1, 4096), (1ULL << 48) | 1, 63}})
               .status()
               .code(),
           Code::bad_request);
  CHECK_EQ(here.partition->live_blocks(), 0);
}

TEST("a list with a block of another server closes the connection") {
  Bench bench;
  Visitor visitor(bench.operations);
  const GlobalPointer block = bench.host.make(pattern(500));
  const wire::BlockItem items[2] = {{block.address.raw(), block.colour, block.extent_bytes},
                                    {Address::make(9, 4096).raw(), block.colour, block.extent_bytes}};
  visitor.pipe.say(request(Operation::read_blocks, {}, sizeof items));
  visitor.pipe.say(items);
  CHECK_EQ(visitor.go(), Connection::Wants::close);
  CHECK(visitor.pipe.output.empty());
}

TEST("a group is served in small steps like any answer, and the next request after it") {
  Bench bench;
  Visitor visitor(bench.operations);
  visitor.pipe.step_bytes = 777;
  const GlobalPointer small = bench.host.make(pattern(300));
  const GlobalPointer large = bench.host.make(pattern(150'000));
  const wire::BlockItem items[3] = {{small.address.raw(), small.colour, small.extent_bytes},
                                    {large.address.raw(), large.colour, large.extent_bytes},
                                    {small.address.raw(), small.colour, small.extent_bytes}};
  visitor.pipe.say(request(Operation::read_blocks, {}, sizeof items));
  visitor.pipe.say(items);
  visitor.pipe.say(request(Operation::ping));
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  const auto reply = visitor.pipe.hear<wire::ReplyHeader>();
  CHECK_EQ(reply.code, static_cast<std::uint8_t>(Code::ok));
  std::uint64_t total_bytes = 0;
  for (const wire::BlockItem& item : items) total_bytes += item.extent_bytes + sizeof(wire::Trailer);
  CHECK_EQ(reply.body_bytes, total_bytes);
  for (const GlobalPointer& pointer : {small, large, small}) {
    const Bytes block = visitor.pipe.hear(pointer.extent_bytes);
    const Bytes expected = test::block_bytes(bench.host, pointer);
    CHECK(std::equal(block.begin() + 64, block.end(), expected.begin() + 64));
    CHECK_EQ(visitor.pipe.hear<wire::Trailer>().code, 0);
  }
  CHECK_EQ(test::heard_code(visitor), Code::ok);
}
