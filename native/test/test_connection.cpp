// The server's connections over streams in memory: every partial transfer can be provoked here.
#include "server/connection.hpp"

#include <algorithm>
#include <cstring>

#include "test/harness.hpp"
#include "test/heard.hpp"

using namespace drust;
using server::Connection;
using test::Bench;
using test::heard_code;
using test::heard_read;
using test::pattern;
using test::request;
using test::Visitor;
using wire::Operation;
using Bytes = std::vector<std::byte>;

TEST("nothing is parsed before the handshake") {
  Bench bench;
  const GlobalPointer block = bench.host.make(pattern(100));
  Visitor visitor(bench.operations, false);
  visitor.pipe.say(request(Operation::read_block, block));
  CHECK_EQ(visitor.go(), Connection::Wants::close);
  CHECK(visitor.pipe.output.empty());
  CHECK_EQ(visitor.connection->reason().code(), Code::bad_request);
  CHECK(!visitor.connection->is_authenticated());
  CHECK_EQ(bench.host.counted(heap::Counter::frames_rejected), 1);
}

TEST("a block is read whole, whatever pieces the bytes travel in") {
  Bench bench;
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{512}, std::size_t{16 * 1024}, std::size_t{300'000}}) {
    const Bytes value = pattern(size);
    const GlobalPointer block = bench.host.make(value);
    for (const std::size_t step : {std::size_t{1}, std::size_t{7}, std::size_t{1} << 40}) {
      if (step == 1 && size > 512) continue;
      Visitor visitor(bench.operations);
      visitor.pipe.step_bytes = step;
      visitor.pipe.say(request(Operation::read_block, block));
      visitor.pipe.say(request(Operation::ping));
      CHECK_EQ(visitor.go(), Connection::Wants::event);
      Code code = Code::system;
      const Bytes body = heard_read(visitor, block.extent_bytes - sizeof(heap::BlockHeader), true, code);
      CHECK_EQ(code, Code::ok);
      const Bytes live = block_bytes(bench.host, block);
      CHECK(std::equal(body.begin(), body.end(), live.begin() + sizeof(heap::BlockHeader), live.end()));
      CHECK_EQ(heard_code(visitor), Code::ok);  // the ping behind it
      CHECK(visitor.pipe.output.empty());
    }
  }
}

TEST("reading another version, another place or another extent is refused and the connection lives on") {
  Bench bench;
  const GlobalPointer block = bench.host.make(pattern(100));
  Visitor visitor(bench.operations);
  const auto ask = [&](GlobalPointer pointer) {
    visitor.pipe.say(request(Operation::read_block, pointer));
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    return heard_code(visitor);
  };
  CHECK_EQ(ask({block.address, block.colour + 1, block.extent_bytes}), Code::stale);
  CHECK_EQ(ask({Address::make(3, 1ULL << 30), block.colour, block.extent_bytes}), Code::not_found);
  CHECK_EQ(ask({Address::make(4, block.address.offset_bytes()), block.colour, block.extent_bytes}),
           Code::not_found);
  CHECK_EQ(ask({block.address, block.colour, block.extent_bytes + 64}), Code::bad_request);
  CHECK_EQ(ask(block), Code::ok);
}

TEST("a block that is freed while it is sent ends in zeros and a stale trailer") {
  Bench bench;
  const Bytes value(2 << 20, std::byte{9});
  const GlobalPointer block = bench.host.make(value);
  Visitor visitor(bench.operations);
  visitor.pipe.room_bytes = 100'000;
  visitor.pipe.say(request(Operation::read_block, block));
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK_EQ(visitor.pipe.output.size(), 100'000);
  std::vector<GlobalPointer> remote;
  CHECK(bench.host.heap->free(block, remote).ok());
  const GlobalPointer next = bench.host.make(Bytes(2 << 20, std::byte{5}));  // may well reuse the place
  visitor.pipe.room_bytes = 1ULL << 40;
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  Code code = Code::ok;
  const Bytes body = heard_read(visitor, block.extent_bytes - sizeof(heap::BlockHeader), true, code);
  CHECK_EQ(code, Code::stale);
  CHECK(std::count(body.begin(), body.end(), std::byte{5}) == 0);  // nothing of the next owner's
  CHECK_EQ(body.back(), std::byte{0});
  CHECK(bench.host.is_live(next));
}

TEST("a malformed frame closes the connection, is counted, and touches nothing") {
  Bench bench;
  const Bytes value = pattern(4096);
  const GlobalPointer block = bench.host.make(value);
  const std::uint64_t live = bench.host.partition->live_blocks();
  std::uint64_t rejected = 0;
  for (int kind = 0; kind < 4; ++kind) {
    Visitor visitor(bench.operations);
    wire::RequestHeader header = request(Operation::write_region, block, 64, {0, 64, 1, 0});
    if (kind == 0) header.magic = 1;
    if (kind == 1) header.operation = 77;
    if (kind == 2) header.region.offset_bytes = ~0ULL;
    if (kind == 3) header.body_bytes = 65;
    visitor.pipe.say(header);
    visitor.pipe.say(Bytes(64, std::byte{1}).data(), 64);
    CHECK_EQ(visitor.go(), Connection::Wants::close);
    CHECK(!visitor.connection->reason().detail().empty());
    CHECK_EQ(bench.host.counted(heap::Counter::frames_rejected), ++rejected);
  }
  CHECK(bench.host.bytes(block) == value);
  CHECK_EQ(bench.host.partition->live_blocks(), live);
}

TEST("a writer that dies in the middle of its body changes nothing and leaves nothing") {
  Bench bench;
  const Bytes value = pattern(1 << 20);
  const GlobalPointer block = bench.host.make(value);
  const std::uint64_t claimed = bench.host.partition->usage().claimed_bytes;
  {
    Visitor visitor(bench.operations);
    visitor.pipe.say(request(Operation::write_region, block, 1 << 20, {0, 1 << 20, 1, 0}));
    visitor.pipe.say(Bytes(1 << 19, std::byte{1}).data(), 1 << 19);
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    CHECK(bench.host.partition->usage().claimed_bytes > claimed);  // waiting aside
    visitor.pipe.has_ended = true;
    CHECK_EQ(visitor.go(), Connection::Wants::close);
    CHECK(visitor.connection->reason().ok());
  }
  CHECK(bench.host.bytes(block) == value);
  CHECK_EQ(bench.host.partition->usage().claimed_bytes, claimed);
  CHECK_EQ(bench.host.partition->live_blocks(), 1);
}

TEST("a write to a version that has moved on is refused, its body is dropped, and the connection lives on") {
  Bench bench;
  const GlobalPointer old = bench.host.make(pattern(4096));
  const GlobalPointer now = bench.host.heap->recolour(old).value();
  Visitor visitor(bench.operations);
  visitor.pipe.say(request(Operation::write_region, old, 4096, {0, 4096, 1, 0}));
  visitor.pipe.say(Bytes(4096, std::byte{1}).data(), 4096);
  visitor.pipe.say(request(Operation::ping));
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK_EQ(heard_code(visitor), Code::stale);
  CHECK_EQ(heard_code(visitor), Code::ok);
  CHECK(bench.host.bytes(now) == pattern(4096));
}

TEST("a body that finds no room is dropped and answered out_of_memory") {
  Bench bench;
  Visitor visitor(bench.operations);
  const std::uint64_t size = 65ULL << 20;  // above the quota
  visitor.pipe.say(request(Operation::put_block, {Address(), 0, size}, size));
  const Bytes some(1 << 20);
  for (std::uint64_t sent = 0; sent < size; sent += some.size()) {
    visitor.pipe.say(some.data(), some.size());
    CHECK_EQ(visitor.go(), Connection::Wants::event);
  }
  CHECK_EQ(heard_code(visitor), Code::out_of_memory);
  visitor.pipe.say(request(Operation::ping));
  visitor.go();
  CHECK_EQ(heard_code(visitor), Code::ok);
}

TEST("a control request waits for its answer while nothing else of that peer is served") {
  Bench bench;
  Visitor visitor(bench.operations);
  visitor.pipe.say(request(Operation::control, {}, 5));
  visitor.pipe.say("hello", 5);
  visitor.pipe.say(request(Operation::ping));
  CHECK_EQ(visitor.go(), Connection::Wants::control);
  const Bytes body = visitor.connection->take_control();
  CHECK_EQ(body.size(), 5);
  CHECK(std::memcmp(body.data(), "hello", 5) == 0);
  CHECK(visitor.pipe.output.empty());
  visitor.connection->answer_control(std::as_bytes(std::span("good day", 8)));
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK_EQ(visitor.pipe.hear<wire::ReplyHeader>().body_bytes, 8);
  CHECK(std::memcmp(visitor.pipe.hear(8).data(), "good day", 8) == 0);
  CHECK_EQ(heard_code(visitor), Code::ok);
}
