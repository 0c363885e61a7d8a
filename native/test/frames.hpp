// Frames for the fuzzer: valid ones that name live blocks, and ways to spoil them. Everything follows from
// one seed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "protocol/wire.hpp"
#include "test/host.hpp"

namespace drust::test {

using Bytes = std::vector<std::byte>;

// splitmix64: small, and the same everywhere.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) noexcept : state_(seed) {}
  std::uint64_t next() noexcept {
    std::uint64_t mixed = (state_ += 0x9e3779b97f4a7c15ULL);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ULL;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebULL;
    return mixed ^ (mixed >> 31);
  }
  std::uint64_t below(std::uint64_t bound) noexcept { return next() % bound; }
  bool once_in(std::uint64_t count) noexcept { return below(count) == 0; }

 private:
  std::uint64_t state_;
};

template <class T>
void append(Bytes& bytes, const T& message) {
  const auto* start = reinterpret_cast<const std::byte*>(&message);
  bytes.insert(bytes.end(), start, start + sizeof message);
}

inline void append_random(Bytes& bytes, Dice& dice, std::uint64_t count) {
  const std::size_t start = bytes.size();
  bytes.resize(start + count);
  for (std::uint64_t at = 0; at < count; at += 8) {
    const std::uint64_t word = dice.next();
    std::memcpy(bytes.data() + start + at, &word, std::min<std::uint64_t>(8, count - at));
  }
}

// A region of a buffer of `bytes` bytes.
inline wire::Region any_region(Dice& dice, std::uint64_t bytes) {
  wire::Region region;
  region.chunk_bytes = 1 + dice.below(std::min<std::uint64_t>(bytes, 300));
  region.stride_bytes = region.chunk_bytes + dice.below(100);
  const std::uint64_t count_max = (bytes - region.chunk_bytes) / region.stride_bytes + 1;
  region.count = 1 + dice.below(count_max);
  region.offset_bytes = dice.below(bytes - (region.count - 1) * region.stride_bytes - region.chunk_bytes + 1);
  return region;
}

// A valid frame. `block` has one buffer of `buffer_bytes`; `record` is a record of the same server; `sample`
// are the bytes of a whole block of another server.
inline Bytes any_frame(Dice& dice, const GlobalPointer& block, std::uint64_t buffer_bytes,
                       const GlobalPointer& record, const Bytes& sample) {
  const auto operation =
      static_cast<wire::Operation>(1 + dice.below(static_cast<std::uint64_t>(wire::Operation::count_) - 1));
  wire::RequestHeader header = request(operation);
  Bytes body;
  switch (operation) {
    case wire::Operation::read_block:
    case wire::Operation::read_region:
    case wire::Operation::write_region:
      header = request(operation, block);
      if (operation != wire::Operation::read_block) header.region = any_region(dice, buffer_bytes);
      if (operation == wire::Operation::write_region) {
        append_random(body, dice, header.region.chunk_bytes * header.region.count);
      }
      break;
    case wire::Operation::free_blocks:
      for (std::uint64_t index = dice.below(3); index > 0; --index) {
        append(body, wire::FreeItem{block.address.raw() + dice.below(3), block.colour - dice.below(3),
                                    dice.below(2)});
      }
      append(body, wire::FreeItem{block.address.raw(), dice.once_in(8) ? block.colour : block.colour + 1,
                                  dice.below(3)});
      if (dice.once_in(3)) {
        append(body, wire::FreeItem{block.address.raw(), block.colour + 1, wire::FreeItem::kPassedOn});
        append(body, wire::FreeItem{block.address.raw(), block.colour, wire::FreeItem::kSuccessor});
      }
      if (dice.once_in(3)) {
        append(body, wire::FreeItem{Address::make(4, (1 + dice.below(50)) * 4096).raw(), block.colour + dice.below(3),
                                    wire::FreeItem::kReplica << dice.below(2)});
      }
      break;
    case wire::Operation::read_blocks:
      for (std::uint64_t index = dice.below(4) + 1; index > 0; --index) {
        append(body, wire::BlockItem{block.address.raw(), block.colour + dice.below(2), block.extent_bytes});
      }
      break;
    case wire::Operation::put_block:
      body = sample;
      header.extent_bytes = body.size();
      break;
    case wire::Operation::submit:
      header = request(operation, record);
      if (dice.once_in(3)) header.argument = wire::Submit::kMore;
      body = sample;
      break;
    case wire::Operation::complete:
      header = request(operation, record);
      header.argument = static_cast<std::uint16_t>(1 + dice.below(2));
      if (!dice.once_in(4)) {
        body = sample;
      } else if (dice.once_in(2)) {  // no room for it
        header.argument = dice.once_in(2) ? 6 : 10;
      }
      break;
    case wire::Operation::read_table: header = request(operation, block); break;
    case wire::Operation::inquire:
    case wire::Operation::withdraw: header = request(operation, record); break;
    case wire::Operation::replicate: {
      const Address elsewhere = Address::make(4, (1 + dice.below(50)) * 4096);
      header = request(operation, {elsewhere, block.colour + dice.below(3), sample.size()}, 0,
                       {1 + dice.below(1000), 0, 0, 0});
      header.argument = static_cast<std::uint16_t>(dice.next() & wire::Replicate::kAll);
      body = sample;
      break;
    }
    case wire::Operation::shared: {  // at a block that is no hold
      const auto verb = static_cast<wire::SharedVerb>(
          1 + dice.below(static_cast<std::uint64_t>(wire::SharedVerb::count_) - 1));
      header = verb == wire::SharedVerb::bury ? request(operation) : request(operation, block);
      header.argument = static_cast<std::uint16_t>(verb);
      header.region = {dice.next(), dice.next(), dice.next(), dice.next()};
      const bool takes_body = verb == wire::SharedVerb::unlock || verb == wire::SharedVerb::send ||
                              verb == wire::SharedVerb::dict;
      if (takes_body && dice.once_in(2)) body = sample;
      break;
    }
    case wire::Operation::control: append_random(body, dice, dice.below(200)); break;
    case wire::Operation::ping:
    case wire::Operation::count_: break;
  }
  header.body_bytes = body.size();
  Bytes frame;
  append(frame, header);
  frame.insert(frame.end(), body.begin(), body.end());
  return frame;
}

// Changes `bytes` somewhere: bits, a field with a telling value, its length, or, as it may fall, nothing.
inline void spoil(Dice& dice, Bytes& bytes) {
  static constexpr std::uint64_t kTelling[] = {0,          1,          63,
                                               64,         65,         4096,
                                               1ULL << 16, 1ULL << 31, (1ULL << 32) - 1,
                                               1ULL << 40, 1ULL << 47, 1ULL << 48,
                                               1ULL << 63, ~0ULL,      ~0ULL - 63};
  if (bytes.size() < 8) return;
  const std::uint64_t head = std::min<std::uint64_t>(bytes.size(), sizeof(wire::RequestHeader) + 128);
  switch (dice.below(5)) {
    case 0:
    case 1:
      for (std::uint64_t count = 1 + dice.below(3); count > 0; --count) {
        bytes[dice.below(dice.once_in(2) ? head : bytes.size())] ^=
            static_cast<std::byte>(1U << dice.below(8));
      }
      break;
    case 2: {
      const std::uint64_t value = kTelling[dice.below(std::size(kTelling))];
      std::memcpy(bytes.data() + dice.below(head / 8) * 8, &value, sizeof value);
      break;
    }
    case 3: {
      const auto value = static_cast<std::uint32_t>(kTelling[dice.below(std::size(kTelling))]);
      std::memcpy(bytes.data() + dice.below(head / 4) * 4, &value, sizeof value);
      break;
    }
    default:
      if (dice.once_in(4)) bytes.resize(dice.below(bytes.size()));
      if (dice.once_in(8)) append_random(bytes, dice, dice.below(64));
      break;
  }
}

}  // namespace drust::test
