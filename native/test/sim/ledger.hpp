// What every version of every value must hold, so that whoever reads one can be held to it.
//
// A value is words made from (object, number of the write, place), so a byte of another version, of another
// object or of no write at all shows. It has two halves with a number each, as parts of an array are written
// alone. Plain code: the simulation's servers are compared with this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/address.hpp"
#include "heap/block.hpp"

namespace drust::test {

using Numbers = std::array<std::uint32_t, 2>;  // of the writes that made the halves

struct Version {
  std::uint32_t object = 0;
  Numbers numbers{};
  bool is_dirty = false;  // somebody has begun to write in place under this colour: a late read may see anything
};

inline std::uint64_t word_of(std::uint32_t object, std::uint32_t number, std::uint64_t place) noexcept {
  std::uint64_t mixed = ((std::uint64_t{object} << 32) | number) * 0x9e3779b97f4a7c15ULL + place;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ULL;
  return mixed ^ (mixed >> 29);
}

// `half` of a value of `value_bytes`; its place in the value.
struct Half {
  std::uint64_t offset_bytes;
  std::uint64_t bytes;
};
inline Half half_of(std::uint64_t value_bytes, std::uint32_t half) noexcept {
  const std::uint64_t first = value_bytes / 16 * 8;
  return half == 0 ? Half{0, first} : Half{first, value_bytes - first};
}

// Bytes of a half, from its start.
inline void write_words(std::span<std::byte> bytes, std::uint32_t object, std::uint32_t number,
                        std::uint64_t first = 0) noexcept {
  for (std::uint64_t at = 0; at + 8 <= bytes.size(); at += 8) {
    const std::uint64_t word = word_of(object, number, first + at / 8);
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
}
inline bool holds_words(std::span<const std::byte> bytes, std::uint32_t object, std::uint32_t number) noexcept {
  for (std::uint64_t at = 0; at + 8 <= bytes.size(); at += 8) {
    const std::uint64_t word = word_of(object, number, at / 8);
    if (std::memcmp(bytes.data() + at, &word, sizeof word) != 0) return false;
  }
  return true;
}
inline bool holds(std::span<const std::byte> value, std::uint32_t object, const Numbers& numbers) noexcept {
  for (const std::uint32_t half : {0U, 1U}) {
    const Half place = half_of(value.size(), half);
    if (!holds_words(value.subspan(place.offset_bytes, place.bytes), object, numbers[half])) return false;
  }
  return true;
}

class Ledger {
 public:
  // Known already, it stays as dirty as it is.
  void enter(const GlobalPointer& pointer, std::uint32_t object, const Numbers& numbers) {
    Version& version = versions_[key(pointer)];
    if (version.object != object || version.numbers != numbers) version = {object, numbers, false};
  }
  [[nodiscard]] Version* find(const GlobalPointer& pointer) {
    const auto found = versions_.find(key(pointer));
    return found == versions_.end() ? nullptr : &found->second;
  }
  // Others may have heard of it from now on.
  void tell(const GlobalPointer& pointer) { told_.push_back(pointer); }
  [[nodiscard]] const std::vector<GlobalPointer>& told() const noexcept { return told_; }

 private:
  // Colours are drawn by servers, each for itself.
  static std::uint64_t key(const GlobalPointer& pointer) noexcept {
    return pointer.colour * 64 + pointer.address.server();
  }
  std::unordered_map<std::uint64_t, Version> versions_;
  std::vector<GlobalPointer> told_;
};

}  // namespace drust::test
