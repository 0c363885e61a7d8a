#include "protocol/wire.hpp"

#include <string>

namespace drust::wire {
namespace {

Status bad(const char* operation, const char* what) {
  return Status(Code::bad_request, std::string(operation) + ": " + what);
}

constexpr bool is_colour(Colour colour) noexcept { return (colour >> (64 - kIncarnationBits)) != 0; }

constexpr bool is_place(std::uint64_t address) noexcept {
  return (address >> (kServerBits + kGranuleBits)) == 0 && Address(address).offset_bytes() != 0;
}

constexpr bool is_extent(std::uint64_t bytes) noexcept {
  return bytes >= kBlockBytesMin && bytes <= kPartitionBytesMax;
}

bool is_empty(const Region& region) noexcept {
  return region.offset_bytes == 0 && region.chunk_bytes == 0 && region.count == 0 && region.stride_bytes == 0;
}

// What a request may carry; anything else must be zero.
struct Rule {
  bool has_pointer;  // address, colour, extent_bytes name a block
  bool has_region;
  bool has_argument;
};

constexpr Rule rule_of(Operation operation) noexcept {
  switch (operation) {
    case Operation::read_block: return {true, false, false};
    case Operation::read_region:
    case Operation::write_region: return {true, true, false};
    case Operation::inquire:
    case Operation::read_table:
    case Operation::withdraw:
    case Operation::replicate: return {true, false, false};  // and what check() says
    case Operation::submit:
    case Operation::complete: return {true, false, true};
    case Operation::shared: return {true, false, true};  // and what check() says
    case Operation::free_blocks:
    case Operation::put_block:
    case Operation::ping:
    case Operation::control:
    case Operation::read_blocks:
    case Operation::count_: break;
  }
  return {false, false, false};
}

// The length of the body, given that the fields are in range.
Status check_body(const RequestHeader& header, Operation operation) {
  const char* name = name_of(operation);
  const std::uint64_t bytes = header.body_bytes;
  switch (operation) {
    case Operation::read_block:
    case Operation::read_region:
    case Operation::inquire:
    case Operation::read_table:
    case Operation::withdraw:
    case Operation::ping: return bytes == 0 ? Status() : bad(name, "it has no body");
    case Operation::write_region: {
      const Result<std::uint64_t> wanted = total_bytes(header.region, header.extent_bytes);
      if (!wanted.ok()) return wanted.status();
      return bytes == wanted.value() ? Status() : bad(name, "the body is not as long as the region");
    }
    case Operation::free_blocks:
      return bytes > 0 && bytes % sizeof(FreeItem) == 0 && bytes / sizeof(FreeItem) <= kFreesPerBatchMax
                 ? Status()
                 : bad(name, "the body is no batch of frees");
    case Operation::put_block:
      return is_extent(bytes) && bytes == header.extent_bytes
                 ? Status()
                 : bad(name, "the body is not as long as the block");
    case Operation::replicate:
      return bytes == header.extent_bytes ? Status() : bad(name, "the body is not as long as the block");
    case Operation::submit:
      return is_extent(bytes) ? Status() : bad(name, "the body is too short or too long for a block");
    case Operation::complete:
      return bytes == 0 || is_extent(bytes) ? Status()
                                            : bad(name, "the body is too short or too long for a block");
    case Operation::control:
      return bytes <= kControlBodyBytesMax ? Status() : bad(name, "the body is too long");
    case Operation::shared:
      if (bytes == 0) return {};
      return (header.argument == static_cast<std::uint16_t>(SharedVerb::unlock) ||
              header.argument == static_cast<std::uint16_t>(SharedVerb::send) ||
              header.argument == static_cast<std::uint16_t>(SharedVerb::dict)) &&
                     is_extent(bytes)
                 ? Status()
                 : bad(name, "the body is no block that the verb takes");
    case Operation::read_blocks:
      return bytes > 0 && bytes % sizeof(BlockItem) == 0 && bytes / sizeof(BlockItem) <= kBlocksPerReadMax
                 ? Status()
                 : bad(name, "the body is no list of blocks");
    case Operation::count_: break;
  }
  return bad(name, "there is no such operation");
}

}  // namespace

const char* name_of(Operation operation) noexcept {
  switch (operation) {
    case Operation::read_block: return "read_block";
    case Operation::read_region: return "read_region";
    case Operation::write_region: return "write_region";
    case Operation::free_blocks: return "free_blocks";
    case Operation::put_block: return "put_block";
    case Operation::submit: return "submit";
    case Operation::complete: return "complete";
    case Operation::inquire: return "inquire";
    case Operation::ping: return "ping";
    case Operation::replicate: return "replicate";
    case Operation::withdraw: return "withdraw";
    case Operation::control: return "control";
    case Operation::read_blocks: return "read_blocks";
    case Operation::read_table: return "read_table";
    case Operation::shared: return "shared";
    case Operation::count_: break;
  }
  return "unknown operation";
}

Result<std::uint64_t> total_bytes(const Region& region, std::uint64_t within_bytes) {
  if (region.chunk_bytes == 0 || region.count == 0) return std::uint64_t{0};
  // With each factor in range no product below can wrap: each is tested by division before it is multiplied.
  const bool is_inside = within_bytes <= kPartitionBytesMax && region.offset_bytes <= within_bytes &&
                         region.chunk_bytes <= within_bytes - region.offset_bytes;
  if (!is_inside) return bad("region", "it does not lie inside the block");
  if (region.count > 1) {
    if (region.stride_bytes < region.chunk_bytes) return bad("region", "its chunks overlap");
    const std::uint64_t room_bytes = within_bytes - region.offset_bytes - region.chunk_bytes;
    if (region.count - 1 > room_bytes / region.stride_bytes)
      return bad("region", "it does not lie inside the block");
  }
  return region.chunk_bytes * region.count;  // <= within_bytes, as chunks do not overlap
}

Status check(const RequestHeader& header) {
  if (header.magic != RequestHeader::kMagic) return bad("request", "wrong magic number");
  if (header.operation == 0 || header.operation >= static_cast<std::uint8_t>(Operation::count_)) {
    return bad("request", "there is no such operation");
  }
  const auto operation = static_cast<Operation>(header.operation);
  const char* name = name_of(operation);
  const Rule rule = rule_of(operation);
  if (header.flags != 0) return bad(name, "unknown flags");
  if (header.body_bytes > kFrameBodyBytesMax) return bad(name, "the body is too long");
  // tasks::RecordState done, lost; without a block refused, refused_poisoned
  const bool is_refusal = header.body_bytes == 0 && (header.argument == 6 || header.argument == 10);
  const bool is_outcome = header.argument == 1 || header.argument == 2 || is_refusal;
  const bool is_replica = operation == Operation::replicate;
  const bool is_shared = operation == Operation::shared;
  const bool is_burial = is_shared && header.argument == static_cast<std::uint16_t>(SharedVerb::bury);
  bool is_argument = header.argument == 0;
  if (operation == Operation::complete) is_argument = is_outcome;
  if (operation == Operation::submit) is_argument = (header.argument & ~Submit::kMore) <= kRetriesMax;
  if (is_replica) is_argument = (header.argument & ~Replicate::kAll) == 0;
  if (is_shared) is_argument = header.argument != 0 && header.argument < static_cast<std::uint16_t>(SharedVerb::count_);
  if (!is_argument) return bad(name, "the argument is out of range");
  if (rule.has_pointer && !is_burial) {
    if (!is_place(header.address)) return bad(name, "the address is nowhere");
    if (!is_colour(header.colour)) return bad(name, "the colour is none");
    if (!is_extent(header.extent_bytes)) return bad(name, "the extent is out of range");
  } else if (header.address != 0 || header.colour != 0 ||
             (header.extent_bytes != 0 && operation != Operation::put_block)) {
    return bad(name, "it has no pointer");
  }
  if (rule.has_region) {
    if (const auto bytes = total_bytes(header.region, header.extent_bytes); !bytes.ok())
      return bytes.status();
  } else if (is_replica) {
    if (header.region.offset_bytes == 0 || !is_empty({0, header.region.chunk_bytes, header.region.count,
                                                      header.region.stride_bytes}))
      return bad(name, "it has a stamp and no region");
  } else if (!is_shared && !is_empty(header.region)) {
    return bad(name, "it has no region");
  }
  return check_body(header, operation);
}

Status check(const ReplyHeader& header, Operation operation) {
  const char* name = name_of(operation);
  if (header.magic != ReplyHeader::kMagic) return bad("reply", "wrong magic number");
  if (header.operation != static_cast<std::uint8_t>(operation))
    return bad(name, "this answers another operation");
  if (header.code > static_cast<std::uint8_t>(Code::system) || header.reserved != 0)
    return bad(name, "unknown code");
  if (header.code != 0) {
    return header.body_bytes <= kSentenceBytesMax ? Status() : bad(name, "the refusal is too long");
  }
  if (header.body_bytes > kFrameBodyBytesMax) return bad(name, "the body is too long");
  if ((operation == Operation::put_block || operation == Operation::read_table) &&
      !(is_place(header.address) && is_colour(header.colour) && is_extent(header.extent_bytes))) {
    return bad(name, "the block is nowhere");
  }
  if (operation == Operation::control && header.body_bytes > kControlBodyBytesMax)
    return bad(name, "the body is too long");
  return {};
}

Status check(const FreeItem& item) {
  const char* name = "free_blocks";
  if (!is_place(item.address)) return bad(name, "the block is nowhere");
  switch (item.flags) {
    case FreeItem::kReplica: return item.colour != 0 ? Status() : bad(name, "the stamp is none");
    case 0:
    case FreeItem::kShallow:
    case FreeItem::kTied:
    case FreeItem::kPassedOn:
    case FreeItem::kSuccessor:
    case FreeItem::kMade:
    case FreeItem::kConfirm: return is_colour(item.colour) ? Status() : bad(name, "the colour is none");
    default: return bad(name, "unknown flags");
  }
}

Status check(std::span<const FreeItem> batch) {
  bool wants_successor = false;
  for (const FreeItem& item : batch) {
    if (Status status = check(item); !status.ok()) return status;
    if (wants_successor != (item.flags == FreeItem::kSuccessor))
      return bad("free_blocks", "an item and its successor are not together");
    wants_successor = item.flags == FreeItem::kPassedOn;
  }
  return wants_successor ? bad("free_blocks", "the last item lacks its successor") : Status();
}

Status check(const BlockItem& item) {
  if (!is_place(item.address)) return bad("read_blocks", "the block is nowhere");
  if (!is_colour(item.colour)) return bad("read_blocks", "the colour is none");
  return is_extent(item.extent_bytes) ? Status() : bad("read_blocks", "the extent is out of range");
}

}  // namespace drust::wire
