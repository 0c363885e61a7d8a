// The checks of native/protocol/wire.cpp, field by field: each rule accepting and rejecting.
#include "protocol/wire.hpp"

#include <cstdint>
#include <limits>
#include <vector>

#include "test/harness.hpp"

using namespace drust;
using wire::Operation;

namespace {

constexpr Colour kSomeColour = (7ULL << 48) | 12;
constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

wire::RequestHeader request(Operation operation) {
  wire::RequestHeader header;
  header.operation = static_cast<std::uint8_t>(operation);
  const bool has_pointer = operation != Operation::free_blocks && operation != Operation::put_block &&
                           operation != Operation::ping && operation != Operation::control &&
                           operation != Operation::read_blocks;
  if (has_pointer) {
    header.address = Address::make(3, 64 * 1024).raw();
    header.colour = kSomeColour;
    header.extent_bytes = 4096;
  }
  if (operation == Operation::read_region || operation == Operation::write_region)
    header.region = {64, 32, 4, 128};
  if (operation == Operation::write_region) header.body_bytes = 128;
  if (operation == Operation::free_blocks) header.body_bytes = 2 * sizeof(wire::FreeItem);
  if (operation == Operation::read_blocks) header.body_bytes = 2 * sizeof(wire::BlockItem);
  if (operation == Operation::put_block) header.body_bytes = header.extent_bytes = 256;
  if (operation == Operation::submit || operation == Operation::complete) header.body_bytes = 192;
  if (operation == Operation::complete) header.argument = 1;
  if (operation == Operation::replicate) {
    header.body_bytes = header.extent_bytes;
    header.region.offset_bytes = 7;
  }
  if (operation == Operation::control) header.body_bytes = 5;
  if (operation == Operation::shared) header.argument = static_cast<std::uint16_t>(wire::SharedVerb::step);
  return header;
}

std::vector<Operation> every_operation() {
  std::vector<Operation> all;
  for (std::uint8_t value = 1; value < static_cast<std::uint8_t>(Operation::count_); ++value) {
    all.push_back(static_cast<Operation>(value));
  }
  return all;
}

template <class Change>
bool is_accepted(Operation operation, Change change) {
  wire::RequestHeader header = request(operation);
  change(header);
  return wire::check(header).ok();
}

bool is_region(const wire::Region& region, std::uint64_t within_bytes, std::uint64_t expected_bytes) {
  const auto bytes = wire::total_bytes(region, within_bytes);
  return bytes.ok() && bytes.value() == expected_bytes;
}

}  // namespace

TEST("a well-formed request of every operation is accepted") {
  for (const Operation operation : every_operation()) CHECK(is_accepted(operation, [](auto&) {}));
}

TEST("a request with a wrong magic number, operation, flag or argument is refused") {
  for (const Operation operation : every_operation()) {
    CHECK(!is_accepted(operation, [](auto& header) { header.magic ^= 1; }));
    CHECK(!is_accepted(operation, [](auto& header) { header.flags = 1; }));
    CHECK(!is_accepted(operation, [](auto& header) { header.argument = kRetriesMax + 1; }));
    CHECK(!is_accepted(operation, [](auto& header) { header.operation = 0; }));
    CHECK(!is_accepted(
        operation, [](auto& header) { header.operation = static_cast<std::uint8_t>(Operation::count_); }));
  }
  CHECK(is_accepted(Operation::complete, [](auto& header) { header.argument = 2; }));
  CHECK(!is_accepted(Operation::complete, [](auto& header) { header.argument = 0; }));
  CHECK(!is_accepted(Operation::complete, [](auto& header) { header.argument = 3; }));
  for (const std::uint16_t refusal : {std::uint16_t{6}, std::uint16_t{10}}) {  // which say that there is no room, and bring nothing
    CHECK(!is_accepted(Operation::complete, [&](auto& header) { header.argument = refusal; }));
    CHECK(is_accepted(Operation::complete, [&](auto& header) {
      header.argument = refusal;
      header.body_bytes = 0;
    }));
  }
  CHECK(is_accepted(Operation::submit, [](auto& header) { header.argument = kRetriesMax; }));
  CHECK(is_accepted(Operation::submit, [](auto& header) { header.argument = kRetriesMax | wire::Submit::kMore; }));
  CHECK(!is_accepted(Operation::submit, [](auto& header) { header.argument = kRetriesMax + 1; }));
  CHECK(!is_accepted(Operation::submit, [](auto& header) { header.argument = 0x4000; }));
  CHECK(!is_accepted(Operation::ping, [](auto& header) { header.argument = 1; }));
}

TEST("a step at a shared object names a verb and its hold, and has a body where the verb takes one") {
  using wire::SharedVerb;
  const auto is_taken = [](SharedVerb verb, std::uint64_t body_bytes, bool has_hold = true) {
    return is_accepted(Operation::shared, [&](auto& header) {
      header.argument = static_cast<std::uint16_t>(verb);
      header.body_bytes = body_bytes;
      header.region = {kMost, kMost, kMost, kMost};  // four operands, whatever they are
      if (!has_hold) header.address = header.colour = header.extent_bytes = 0;
    });
  };
  for (auto verb = SharedVerb::hold; verb < SharedVerb::count_; verb = static_cast<SharedVerb>(static_cast<int>(verb) + 1)) {
    const bool takes_body = verb == SharedVerb::unlock || verb == SharedVerb::send || verb == SharedVerb::dict;
    CHECK_EQ(is_taken(verb, 0), verb != SharedVerb::bury);
    CHECK_EQ(is_taken(verb, 0, false), verb == SharedVerb::bury);
    CHECK_EQ(is_taken(verb, 256), takes_body);
    CHECK(!is_taken(verb, 63));
  }
  CHECK(!is_taken(static_cast<SharedVerb>(0), 0));
  CHECK(!is_taken(SharedVerb::count_, 0));
}

TEST("a pointer must be a place with a colour and an extent, and only where one belongs") {
  for (const Operation operation : every_operation()) {
    CHECK(!is_accepted(operation, [](auto& header) { header.address = 1ULL << 60; }));
    CHECK(!is_accepted(operation, [](auto& header) { header.colour = 42; }));  // no incarnation
    CHECK(!is_accepted(operation, [](auto& header) { header.extent_bytes = 63; }));
    CHECK(!is_accepted(operation, [](auto& header) { header.extent_bytes = kPartitionBytesMax + 1; }));
  }
  CHECK(!is_accepted(Operation::read_block, [](auto& header) { header.address = 0; }));
  CHECK(
      !is_accepted(Operation::read_block, [](auto& header) { header.address = Address::make(3, 0).raw(); }));
  CHECK(!is_accepted(Operation::ping, [](auto& header) { header.address = Address::make(3, 4096).raw(); }));
  CHECK(!is_accepted(Operation::control, [](auto& header) { header.colour = kSomeColour; }));
}

TEST("the body must be as long as the operation says") {
  CHECK(!is_accepted(Operation::read_block, [](auto& header) { header.body_bytes = 1; }));
  CHECK(!is_accepted(Operation::ping, [](auto& header) { header.body_bytes = 1; }));
  CHECK(!is_accepted(Operation::write_region, [](auto& header) { header.body_bytes = 127; }));
  CHECK(!is_accepted(Operation::put_block, [](auto& header) { header.body_bytes = 255; }));
  CHECK(!is_accepted(Operation::submit, [](auto& header) { header.body_bytes = 0; }));
  CHECK(!is_accepted(Operation::submit, [](auto& header) { header.body_bytes = kMost; }));
  CHECK(is_accepted(Operation::complete, [](auto& header) { header.body_bytes = 0; }));
  CHECK(!is_accepted(Operation::complete, [](auto& header) { header.body_bytes = 63; }));
  CHECK(is_accepted(Operation::control, [](auto& header) { header.body_bytes = kControlBodyBytesMax; }));
  CHECK(!is_accepted(Operation::control, [](auto& header) { header.body_bytes = kControlBodyBytesMax + 1; }));
  const std::uint64_t item = sizeof(wire::FreeItem);
  CHECK(is_accepted(Operation::free_blocks,
                    [&](auto& header) { header.body_bytes = kFreesPerBatchMax * item; }));
  CHECK(!is_accepted(Operation::free_blocks,
                     [&](auto& header) { header.body_bytes = (kFreesPerBatchMax + 1) * item; }));
  CHECK(!is_accepted(Operation::free_blocks, [&](auto& header) { header.body_bytes = item - 1; }));
  CHECK(!is_accepted(Operation::free_blocks, [](auto& header) { header.body_bytes = 0; }));
  const std::uint64_t block = sizeof(wire::BlockItem);
  CHECK(is_accepted(Operation::read_blocks,
                    [&](auto& header) { header.body_bytes = kBlocksPerReadMax * block; }));
  CHECK(!is_accepted(Operation::read_blocks,
                     [&](auto& header) { header.body_bytes = (kBlocksPerReadMax + 1) * block; }));
  CHECK(!is_accepted(Operation::read_blocks, [&](auto& header) { header.body_bytes = block + 1; }));
  CHECK(!is_accepted(Operation::read_blocks, [](auto& header) { header.body_bytes = 0; }));
}

TEST("a region lies inside its block, its chunks do not overlap, and no product wraps") {
  CHECK(is_region({0, 4096, 1, 0}, 4096, 4096));
  CHECK(is_region({64, 32, 4, 128}, 64 + 3 * 128 + 32, 128));
  CHECK(!is_region({64, 32, 4, 128}, 64 + 3 * 128 + 31, 128));
  CHECK(!is_region({1, 4096, 1, 0}, 4096, 4096));
  CHECK(!is_region({0, 64, 2, 63}, 4096, 128));
  CHECK(is_region({0, 64, 2, 64}, 4096, 128));
  CHECK(is_region({kMost, 0, kMost, kMost}, 64, 0));  // no bytes at all
  CHECK(!is_region({kMost, 64, 1, 0}, 4096, 64));
  CHECK(!is_region({0, kMost, 2, kMost}, kPartitionBytesMax, 0));
  CHECK(!is_region({0, 1ULL << 32, 1ULL << 32, 1ULL << 32}, kPartitionBytesMax, 0));
  CHECK(!is_region({0, 1, kMost, 1}, kPartitionBytesMax, kMost));
  CHECK(!is_region({0, 64, 1, 0}, kMost, 64));
  CHECK(!is_accepted(Operation::read_region, [](auto& header) { header.region.offset_bytes = 4096; }));
  CHECK(!is_accepted(Operation::read_block, [](auto& header) { header.region.count = 1; }));
}

TEST("a reply is refused unless it answers what was asked") {
  wire::ReplyHeader reply;
  reply.operation = static_cast<std::uint8_t>(Operation::ping);
  CHECK(wire::check(reply, Operation::ping).ok());
  CHECK(!wire::check(reply, Operation::control).ok());
  wire::ReplyHeader wrong = reply;
  wrong.magic = wire::RequestHeader::kMagic;
  CHECK(!wire::check(wrong, Operation::ping).ok());
  wrong = reply;
  wrong.code = static_cast<std::uint8_t>(Code::system) + 1;
  CHECK(!wire::check(wrong, Operation::ping).ok());
  wrong = reply;
  wrong.code = static_cast<std::uint8_t>(Code::stale);
  wrong.body_bytes = wire::kSentenceBytesMax;
  CHECK(wire::check(wrong, Operation::ping).ok());
  wrong.body_bytes = wire::kSentenceBytesMax + 1;
  CHECK(!wire::check(wrong, Operation::ping).ok());
}

TEST("a new block must be somewhere") {
  wire::ReplyHeader reply;
  reply.operation = static_cast<std::uint8_t>(Operation::put_block);
  CHECK(!wire::check(reply, Operation::put_block).ok());
  reply.address = Address::make(1, 4096).raw();
  reply.colour = kSomeColour;
  reply.extent_bytes = 64;
  CHECK(wire::check(reply, Operation::put_block).ok());
}

TEST("a free must name a version of a block, a notice about replicas a version or a stamp") {
  const wire::FreeItem item{Address::make(2, 4096).raw(), kSomeColour, wire::FreeItem::kShallow};
  CHECK(wire::check(item).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, 5, 0}).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, item.colour, 3}).ok());
  CHECK(wire::check(wire::FreeItem{item.address, item.colour, wire::FreeItem::kMade}).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, item.colour, 128}).ok());
  CHECK(!wire::check(wire::FreeItem{Address::make(2, 0).raw(), item.colour, 0}).ok());
  CHECK(wire::check(wire::FreeItem{item.address, 5, wire::FreeItem::kReplica}).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, 0, wire::FreeItem::kReplica}).ok());
  CHECK(wire::check(wire::FreeItem{item.address, item.colour, wire::FreeItem::kConfirm}).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, 5, wire::FreeItem::kConfirm}).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, item.colour, wire::FreeItem::kConfirm | wire::FreeItem::kShallow}).ok());
  CHECK(!wire::check(wire::FreeItem{item.address, item.colour, wire::FreeItem::kConfirm | wire::FreeItem::kReplica}).ok());
}

TEST("a free that passes children on is followed by its successor, and by nothing else") {
  const std::uint64_t place = Address::make(2, 4096).raw();
  const wire::FreeItem plain{place, kSomeColour, 0};
  const wire::FreeItem passed{place, kSomeColour, wire::FreeItem::kPassedOn};
  const wire::FreeItem successor{place, kSomeColour, wire::FreeItem::kSuccessor};
  const auto accepts = [](std::vector<wire::FreeItem> batch) { return wire::check(batch).ok(); };
  CHECK(accepts({plain, passed, successor, plain, passed, successor}));
  CHECK(!accepts({passed}));
  CHECK(!accepts({successor}));
  CHECK(!accepts({passed, plain}));
  CHECK(!accepts({passed, passed, successor, successor}));
  CHECK(!accepts({plain, successor}));
}

TEST("a block to be read must be a version of a block") {
  const wire::BlockItem item{Address::make(2, 4096).raw(), kSomeColour, 4096};
  CHECK(wire::check(item).ok());
  CHECK(!wire::check(wire::BlockItem{item.address, 5, 4096}).ok());
  CHECK(!wire::check(wire::BlockItem{item.address, item.colour, 63}).ok());
  CHECK(!wire::check(wire::BlockItem{item.address, item.colour, kPartitionBytesMax + 1}).ok());
  CHECK(!wire::check(wire::BlockItem{Address::make(2, 0).raw(), item.colour, 64}).ok());
}
