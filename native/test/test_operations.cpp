// What a server does for its peers, operation by operation, over a stream in memory.
#include "server/operations.hpp"

#include <algorithm>
#include <cstring>

#include "test/harness.hpp"
#include "test/heard.hpp"

using namespace drust;
using server::Connection;
using test::Bench;
using test::block_bytes;
using test::heard_code;
using test::heard_read;
using test::Host;
using test::pattern;
using test::request;
using test::Visitor;
using wire::Operation;
using Bytes = std::vector<std::byte>;

TEST("a region is gathered and scattered, in long chunks and in short ones") {
  Bench bench;
  const Bytes value = pattern(1 << 20);
  const GlobalPointer block = bench.host.make(value);
  const wire::Region regions[] = {
      {64, 8, 5000, 200}, {0, 4096, 200, 5000}, {100, 700, 1400, 700}, {5, 1, 1, 0}, {0, 1 << 20, 1, 0}};
  for (const wire::Region& region : regions) {
    const std::uint64_t bytes = region.chunk_bytes * region.count;
    Bytes expected;
    for (std::uint64_t index = 0; index < region.count; ++index) {
      const auto start =
          value.begin() + static_cast<std::ptrdiff_t>(region.offset_bytes + index * region.stride_bytes);
      expected.insert(expected.end(), start, start + static_cast<std::ptrdiff_t>(region.chunk_bytes));
    }
    Visitor visitor(bench.operations);
    visitor.pipe.step_bytes = 10'007;
    visitor.pipe.say(request(Operation::read_region, block, 0, region));
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    Code code = Code::system;
    CHECK(heard_read(visitor, bytes, false, code) == expected);
    CHECK_EQ(code, Code::ok);

    const GlobalPointer target = bench.host.make(Bytes(1 << 20));
    visitor.pipe.say(request(Operation::write_region, target, bytes, region));
    visitor.pipe.say(expected.data(), expected.size());
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    const auto reply = visitor.pipe.hear<wire::ReplyHeader>();
    CHECK_EQ(reply.code, static_cast<std::uint8_t>(Code::ok));
    CHECK_EQ(reply.colour, target.colour);
    visitor.pipe.say(request(Operation::read_region, target, 0, region));
    visitor.go();
    CHECK(heard_read(visitor, bytes, false, code) == expected);
    const Bytes written = bench.host.bytes(target);
    const auto count_zeros = [](const Bytes& all) {
      return std::count(all.begin(), all.end(), std::byte{0});
    };
    CHECK_EQ(count_zeros(written), (1 << 20) - static_cast<std::ptrdiff_t>(bytes) + count_zeros(expected));
    std::vector<GlobalPointer> remote;
    CHECK(bench.host.heap->free(target, remote).ok());
  }
}

TEST("a region outside the block's first buffer is refused") {
  Bench bench;
  const GlobalPointer block = bench.host.make(pattern(1000));
  const GlobalPointer bare = bench.host.make_parent({});
  Visitor visitor(bench.operations);
  visitor.pipe.say(
      request(Operation::read_region, block, 0, {1, 1000, 1, 0}));  // in the extent, not in the buffer
  visitor.pipe.say(request(Operation::read_region, bare, 0, {0, 1, 1, 0}));
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK_EQ(heard_code(visitor), Code::bad_request);
  CHECK_EQ(heard_code(visitor), Code::bad_request);
}

TEST("a write whose block moves on while the body travels is refused") {
  Bench bench;
  const GlobalPointer old = bench.host.make(pattern(4096));
  Visitor visitor(bench.operations);
  visitor.pipe.say(request(Operation::write_region, old, 4096, {0, 4096, 1, 0}));
  visitor.pipe.say(Bytes(4000, std::byte{1}).data(), 4000);
  visitor.go();
  const GlobalPointer now = bench.host.heap->recolour(old).value();
  visitor.pipe.say(Bytes(96, std::byte{1}).data(), 96);
  visitor.go();
  CHECK_EQ(heard_code(visitor), Code::stale);
  CHECK(bench.host.bytes(now) == pattern(4096));
}

TEST("frees run once: a repeated one does not hit the block that reuses the place") {
  Bench bench;
  Visitor visitor(bench.operations);
  const GlobalPointer block = bench.host.make(pattern(500));
  const wire::FreeItem item{block.address.raw(), block.colour, 0};
  visitor.pipe.say(request(Operation::free_blocks, {}, sizeof item));
  visitor.pipe.say(item);
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK(!bench.host.is_live(block));
  const GlobalPointer next = bench.host.make(pattern(500));
  CHECK_EQ(next.address.raw(), block.address.raw());  // else this test shows nothing
  visitor.pipe.say(request(Operation::free_blocks, {}, sizeof item));
  visitor.pipe.say(item);
  CHECK_EQ(visitor.go(), Connection::Wants::event);
  CHECK(bench.host.is_live(next));
  CHECK(visitor.pipe.output.empty());  // frees are not answered
}

TEST("a free takes the children along, a shallow one does not, and those elsewhere are passed on") {
  Bench bench;
  Visitor visitor(bench.operations);
  const GlobalPointer elsewhere{Address::make(9, 4096), (1ULL << 48) | 5, 256};
  const GlobalPointer near = bench.host.make(pattern(10));
  const GlobalPointer kept = bench.host.make(pattern(10));
  const GlobalPointer deep = bench.host.make_parent({near, elsewhere});
  const GlobalPointer shallow = bench.host.make_parent({kept});
  const wire::FreeItem items[2] = {{deep.address.raw(), deep.colour, 0},
                                   {shallow.address.raw(), shallow.colour, wire::FreeItem::kShallow}};
  visitor.pipe.say(request(Operation::free_blocks, {}, sizeof items));
  visitor.pipe.say(items);
  visitor.go();
  CHECK(!bench.host.is_live(deep));
  CHECK(!bench.host.is_live(near));
  CHECK(!bench.host.is_live(shallow));
  CHECK(bench.host.is_live(kept));
  CHECK_EQ(bench.sent_elsewhere.size(), 1);
  CHECK(bench.sent_elsewhere[0] == elsewhere);
}

TEST("a batch with one free for another server closes the connection before anything is freed") {
  Bench bench;
  Visitor visitor(bench.operations);
  const GlobalPointer block = bench.host.make(pattern(500));
  const wire::FreeItem items[2] = {{block.address.raw(), block.colour, 0},
                                   {Address::make(9, 4096).raw(), block.colour, 0}};
  visitor.pipe.say(request(Operation::free_blocks, {}, sizeof items));
  visitor.pipe.say(items);
  CHECK_EQ(visitor.go(), Connection::Wants::close);
  CHECK(bench.host.is_live(block));
  CHECK_EQ(bench.host.counted(heap::Counter::frames_rejected), 1);
}

TEST("a block is put here under a new colour; one whose tables lie is refused and leaves nothing") {
  Bench bench;
  Host other(4);
  const GlobalPointer original = other.make(pattern(5000), 17);
  Bytes body = block_bytes(other, original);
  Visitor visitor(bench.operations);
  const GlobalPointer extent_only{Address(), 0, original.extent_bytes};
  visitor.pipe.say(request(Operation::put_block, extent_only, body.size()));
  visitor.pipe.say(body.data(), body.size());
  visitor.go();
  const auto reply = visitor.pipe.hear<wire::ReplyHeader>();
  const GlobalPointer put{Address(reply.address), reply.colour, reply.extent_bytes};
  CHECK(bench.host.bytes(put) == pattern(5000));
  CHECK_EQ(bench.host.block(put.address).header().codec, 17);
  CHECK(bench.host.is_live(put));
  CHECK(heap::owner_process(bench.host.block(put.address).header().owner.load()) ==
        bench.host.heap->process());

  auto& lying = *reinterpret_cast<heap::BlockHeader*>(body.data());
  for (int kind = 0; kind < 3; ++kind) {
    Bytes copy = body;
    auto& header = *reinterpret_cast<heap::BlockHeader*>(copy.data());
    if (kind == 0) header.child_count = ~0U;
    if (kind == 1) header.extent_bytes = lying.extent_bytes + 64;
    if (kind == 2) reinterpret_cast<heap::BufferSpan*>(copy.data() + 64)->offset_bytes = 1ULL << 50;
    visitor.pipe.say(request(Operation::put_block, extent_only, copy.size()));
    visitor.pipe.say(copy.data(), copy.size());
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    CHECK_EQ(heard_code(visitor), Code::bad_request);
  }
  CHECK_EQ(bench.host.partition->live_blocks(), 1);
}

TEST("a submitted task waits in the queue with its record; a full queue is an answer and keeps nothing") {
  Bench bench;
  Host home(4);
  const GlobalPointer record = tasks::Queue::make_record(*home.heap, 3).value();
  const Bytes body = block_bytes(home, home.make(pattern(100), tasks::kTaskCodec));
  Visitor visitor(bench.operations);
  const auto submit = [&] {
    visitor.pipe.say(request(Operation::submit, record, body.size()));
    visitor.pipe.say(body.data(), body.size());
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    return heard_code(visitor);
  };
  CHECK_EQ(submit(), Code::ok);
  CHECK_EQ(bench.host.queue->ready(), 1);
  const auto entry = bench.host.queue->take(0);
  CHECK(entry.ok() && entry.value().record == record);
  CHECK(bench.host.bytes(entry.value().task) == pattern(100));
  bench.host.queue->finish(entry.value());
  const GlobalPointer filler = bench.host.make(pattern(8));
  while (bench.host.queue->push(filler, record).ok()) {
  }
  const std::uint64_t live = bench.host.partition->live_blocks();
  CHECK_EQ(submit(), Code::full);
  CHECK_EQ(bench.host.partition->live_blocks(), live);
}

TEST("a batch of submissions has one answer: how many are queued, all up to the first that was refused") {
  Bench bench;
  Host home(4);
  const GlobalPointer record = tasks::Queue::make_record(*home.heap, 3).value();
  const Bytes body = block_bytes(home, home.make(pattern(100), tasks::kTaskCodec));
  Visitor visitor(bench.operations);
  const auto submit = [&](int count) {
    for (int index = 0; index < count; ++index) {
      wire::RequestHeader header = request(Operation::submit, record, body.size());
      header.argument = static_cast<std::uint16_t>(7 | (index + 1 < count ? wire::Submit::kMore : 0));
      visitor.pipe.say(header);
      visitor.pipe.say(body.data(), body.size());
    }
    CHECK_EQ(visitor.go(), Connection::Wants::event);
  };
  submit(5);
  auto reply = visitor.pipe.hear<wire::ReplyHeader>();
  CHECK(reply.code == 0 && reply.extent_bytes == 5);
  CHECK_EQ(bench.host.queue->ready(), 5);
  const GlobalPointer filler = bench.host.make(pattern(8));
  for (std::uint32_t left = kQueueEntries - 5 - 2; left > 0; --left) CHECK(bench.host.queue->push(filler, record).ok());
  const std::uint64_t live = bench.host.partition->live_blocks();
  submit(5);
  reply = visitor.pipe.hear<wire::ReplyHeader>();
  CHECK(reply.code == 0 && reply.extent_bytes == 2);
  CHECK_EQ(bench.host.partition->live_blocks(), live + 2);
  submit(3);
  CHECK_EQ(heard_code(visitor), Code::full);
  CHECK_EQ(bench.host.partition->live_blocks(), live + 2);
  bench.host.queue->finish(bench.host.queue->take(0).value());
  submit(1);  // nothing of the refused batch is left over
  reply = visitor.pipe.hear<wire::ReplyHeader>();
  CHECK(reply.code == 0 && reply.extent_bytes == 1);
}

TEST("a task that waits is withdrawn with what it would have moved; one that runs or is gone is not") {
  Bench bench;
  Host home(4);
  const GlobalPointer record = tasks::Queue::make_record(*home.heap, 3).value();
  const Bytes body = block_bytes(home, home.make(pattern(100), tasks::kTaskCodec));
  Visitor visitor(bench.operations);
  const auto ask = [&](Operation operation) {
    const Bytes& sent = operation == Operation::submit ? body : Bytes{};
    visitor.pipe.say(request(operation, record, sent.size()));
    if (!sent.empty()) visitor.pipe.say(sent.data(), sent.size());
    CHECK_EQ(visitor.go(), Connection::Wants::event);
    return heard_code(visitor);
  };
  const std::uint64_t live = bench.host.partition->live_blocks();
  CHECK_EQ(ask(Operation::withdraw), Code::not_found);
  CHECK_EQ(ask(Operation::submit), Code::ok);
  CHECK_EQ(ask(Operation::withdraw), Code::ok);
  CHECK_EQ(ask(Operation::withdraw), Code::not_found);
  CHECK_EQ(ask(Operation::inquire), Code::not_found);
  CHECK_EQ(bench.host.queue->ready() + bench.host.queue->running(), 0);
  CHECK_EQ(bench.host.partition->live_blocks(), live);
  CHECK_EQ(ask(Operation::submit), Code::ok);
  const auto entry = bench.host.queue->take(0);
  CHECK_EQ(ask(Operation::withdraw), Code::not_found);
  CHECK(entry.ok() && bench.host.queue->running() == 1);
}

TEST("a completion settles its record once; a repeated one is answered ok and leaves nothing") {
  Bench bench;
  Host worker(4);
  const GlobalPointer record = tasks::Queue::make_record(*bench.host.heap, 4).value();
  const Bytes body = block_bytes(worker, worker.make(pattern(100), tasks::kCompletionCodec));
  Visitor visitor(bench.operations);
  for (int time = 0; time < 2; ++time) {
    wire::RequestHeader header = request(Operation::complete, record, body.size());
    header.argument =
        static_cast<std::uint16_t>(time == 0 ? tasks::RecordState::done : tasks::RecordState::lost);
    visitor.pipe.say(header);
    visitor.pipe.say(body.data(), body.size());
    visitor.go();
    CHECK_EQ(heard_code(visitor), Code::ok);
    CHECK_EQ(bench.host.partition->live_blocks(), 2);  // the record and the first completion
  }
  const auto settled = tasks::Queue::wait(*bench.host.partition, record, 0);
  if (!CHECK(settled.ok())) return;
  CHECK_EQ(settled.value()->state.load(), tasks::RecordState::done);
  const GlobalPointer completion{Address(settled.value()->address), settled.value()->colour,
                                 settled.value()->extent_bytes};
  CHECK(bench.host.bytes(completion) == pattern(100));
}

TEST("a completion without a block says that the task is lost") {
  Bench bench;
  const GlobalPointer record = tasks::Queue::make_record(*bench.host.heap, 4).value();
  Visitor visitor(bench.operations);
  wire::RequestHeader header = request(Operation::complete, record);
  header.argument = static_cast<std::uint16_t>(tasks::RecordState::lost);
  visitor.pipe.say(header);
  visitor.go();
  CHECK_EQ(heard_code(visitor), Code::ok);
  const auto settled = tasks::Queue::wait(*bench.host.partition, record, 0);
  CHECK(settled.ok() && settled.value()->state.load() == tasks::RecordState::lost);
}
