// One shard of a Dict: a map from keys to values, both bytes, that processes use at the same time.
//
//     words: 256 cells -> nodes of 16 cells -> ... -> entry
//     cell:  0..33 where, in units of 64 bytes; 0: nothing | 34 it is a node | 35..63 turn
//
// A trie over the bits of the key's hash. An entry is a block with key and value; it never changes, and its colour is
// the version of its key. A change is one store of one cell: an entry is put in, or takes another one's place, or goes;
// where two keys meet in a cell, a node that has the first takes the cell, and the second goes below it. So there is no
// table to be made larger. Nodes stay until the object goes: of keys that come and go there are as many as of the most
// keys there were at a time, or a few more.
//
// Readers take no lock and write nothing: an entry stays as long as its cell, so what was read of it is true if the
// cell is the same word afterwards. `turn` grows with every change of a cell.
//
// Writers take the shard's lock for about a microsecond; its word names the process. What the holder is about to do
// stands in the *intent* beside it, so that whoever reaps it knows what to finish: is the fresh block where its hash
// leads? Then the cell was stored, and the rest is done for it; else nothing has happened, and the block, which is the
// dead process's still, ends with it.
//
// Sources: the trie is that of Bagwell, Ideal Hash Trees (2001), without its compression.
// Rejected: open addressing (growing it is a state that a death interrupts, and readers have to know it); writers
// without a lock (an intent a process, and who frees an entry that two replace); a lock a bucket (the same intents,
// many times).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/futex.hpp"
#include "base/limits.hpp"
#include "sync/key_hash.hpp"
#include "sync/object.hpp"

namespace drust::sync {

inline constexpr std::uint32_t kEntryCodec = 0xffffffe0U;
inline constexpr std::uint32_t kNodeCodec = 0xffffffe1U;
inline constexpr std::uint32_t kItemsCodec = 0xffffffe2U;
inline constexpr std::uint64_t kItemBytesMax = 1ULL << 30;  // of a key with its value

// What an entry begins with; key and value follow. So they do where items travel, one after the other, each padded
// to 8 bytes, in the metadata of a block or in a reply.
struct ItemHead {
  KeyHash hash;
  std::uint32_t key_bytes = 0;
  std::uint32_t value_bytes = 0;
  std::uint64_t value_kind = 0;  // the binding's business
  Colour version = 0;            // of what was read; else unused
};
static_assert(sizeof(ItemHead) == 40);

struct Item {
  ItemHead head;
  std::span<const std::byte> key;
  std::span<const std::byte> value;
};
[[nodiscard]] constexpr std::uint64_t bytes_of(const ItemHead& head) noexcept {
  return (sizeof(ItemHead) + head.key_bytes + std::uint64_t{head.value_bytes} + 7) / 8 * 8;
}
// Takes the first item off `bytes`; nothing if there is no whole one.
[[nodiscard]] std::optional<Item> take_item(std::span<const std::byte>& bytes) noexcept;
void append_item(std::vector<std::byte>& bytes, const Item& item);

struct ShardWords {
  static constexpr bool kFreesItself = false;
  static constexpr bool is_of(Kind kind) noexcept { return kind == Kind::shard; }
  static constexpr std::uint32_t kRootBits = 8;
  // By the holder of the lock, and by its reaper.
  struct Intent {
    Word is_valid;  // stored last, cleared first
    KeyHash hash;   // where `fresh` will be found, or `old` was
    Word fresh;     // address and colour of what is about to be linked; 0: nothing
    Word fresh_colour;
    Word old;  // of the entry that goes
    Word old_colour;
    Word count;  // of entries, when it is done
  };
  heap::SharedLife life;
  alignas(64) Word lock;  // Who; 0: nobody
  Word count;
  alignas(64) Intent intent;
  alignas(64) std::array<Word, 1U << kRootBits> cells;
};

class Shard {
 public:
  Shard(heap::Heap& heap, const GlobalPointer& object, ShardWords& words) noexcept
      : heap_(heap), object_(object), words_(words) {}

  // The item of a key, copied to where `reserve(head)` says: its key and then its value. False: there is none.
  // `reserve` may say null: then nothing is copied, and true. Takes no lock.
  template <class Reserve>
  [[nodiscard]] bool find(const KeyHash& hash, Reserve&& reserve) const {
    for (;;) {
      const Spot spot = walk(hash);
      ItemHead head;
      const Met met = read_head(spot, head);
      if (met == Met::changed) continue;
      if (met == Met::nothing || head.hash != hash) return false;
      std::byte* room = reserve(head);
      if (room == nullptr || copy_out(spot, head, room)) return true;
    }
  }
  // Items in the order of their hashes, the first not below `from`, until there are `bytes_max` bytes of them, at
  // least one. Returns the hash to go on from; nothing: these were the last. Takes no lock.
  [[nodiscard]] std::optional<KeyHash> scan(const KeyHash& from, std::uint64_t bytes_max,
                                            std::vector<std::byte>& items) const;
  [[nodiscard]] std::uint64_t count() const noexcept { return words_.count.load(); }

  enum class When : std::uint8_t {
    always,
    absent,
    version,  // the key has that one; 0: absent
    equal,    // its value has the kind and the bytes of another item's
    count_,
  };
  struct Outcome {
    Status status;         // out_of_memory; timed_out: somebody has the lock until after the deadline
    bool is_done = false;  // else the condition did not hold
    Colour version = 0;    // that the key has now; 0: none
  };
  [[nodiscard]] Outcome put(Who who, const Item& item, When when, Colour version, Deadline deadline);
  // When::equal: what is there instead, if anything, is appended to `items`.
  [[nodiscard]] Outcome put_if_equal(Who who, const Item& expected, const Item& item, std::vector<std::byte>& items,
                                     Deadline deadline);
  // What was there is appended to `items`.
  [[nodiscard]] Outcome remove(Who who, const KeyHash& hash, When when, Colour version, std::vector<std::byte>& items,
                               Deadline deadline);

  // By the reaper, before what the dead process owns is freed.
  void bury(const IsDead& is_dead) noexcept;
  // Before the object is freed: entries and nodes.
  void clear() noexcept;

 private:
  enum class Met : std::uint8_t { nothing, entry, changed };
  // Where a hash leads: its last cell, and what was read there.
  struct Spot {
    Word* cell = nullptr;
    std::uint64_t seen = 0;
    std::uint32_t level = 0;
  };
  static constexpr std::uint32_t kNodeBits = 4;
  static constexpr std::uint32_t kLevels = 1 + (128 - ShardWords::kRootBits) / kNodeBits;
  static constexpr std::uint32_t kWhereBits = 34;
  static constexpr std::uint64_t kNode = 1ULL << kWhereBits;
  static constexpr std::uint32_t kTurnShift = kWhereBits + 1;
  static_assert(kPartitionBytesMax / kBlockAlignment == 1ULL << kWhereBits);

  static constexpr bool is_nothing(std::uint64_t cell) noexcept { return (cell & (kNode - 1)) == 0; }
  static constexpr bool is_node(std::uint64_t cell) noexcept { return (cell & kNode) != 0; }
  // What takes the place of `seen`; a null address: nothing.
  static constexpr std::uint64_t next(std::uint64_t seen, Address address, bool is_node) noexcept {
    return ((seen >> kTurnShift) + 1) << kTurnShift | (is_node ? kNode : 0) | address.offset_bytes() / kBlockAlignment;
  }
  static std::uint32_t index(const KeyHash& hash, std::uint32_t level) noexcept;
  [[nodiscard]] Address address_of(std::uint64_t cell) const noexcept {
    return Address::make(object_.address.server(), (cell & (kNode - 1)) * kBlockAlignment);
  }
  [[nodiscard]] std::span<Word> cells_of(std::uint64_t node) const noexcept;
  [[nodiscard]] GlobalPointer pointer_of(std::uint64_t cell) const noexcept;
  [[nodiscard]] Spot walk(const KeyHash& hash) const noexcept;
  [[nodiscard]] static bool is_unchanged(const Spot& spot) noexcept;
  [[nodiscard]] Met read_head(const Spot& spot, ItemHead& head) const noexcept;
  [[nodiscard]] bool copy_out(const Spot& spot, const ItemHead& head, std::byte* to) const noexcept;
  bool scan_cells(std::span<Word> cells, std::uint32_t level, const KeyHash& from, bool is_edge,
                  std::uint64_t bytes_max, std::vector<std::byte>& items, std::optional<KeyHash>& next) const;
  [[nodiscard]] bool leads_to(const KeyHash& hash, Address block) const noexcept;
  [[nodiscard]] bool lock(Who who, Deadline deadline) noexcept;
  void unlock() noexcept;
  [[nodiscard]] Result<GlobalPointer> make_entry(const Item& item);
  // By the holder of the lock. False: no memory.
  [[nodiscard]] bool append_there(const Spot& spot, const ItemHead& head, std::vector<std::byte>& items) const noexcept;
  [[nodiscard]] Outcome link(const Spot& spot, const ItemHead* there, const KeyHash& hash, const GlobalPointer& fresh);
  [[nodiscard]] Status grow(Spot& spot, const KeyHash& hash, const KeyHash& there);
  void store(const Spot& spot, const KeyHash& hash, const GlobalPointer& fresh, bool is_node, const GlobalPointer& old,
             std::uint64_t count) noexcept;
  void finish() noexcept;
  void clear_below(std::span<Word> cells) noexcept;

  heap::Heap& heap_;
  const GlobalPointer object_;
  ShardWords& words_;
};

}  // namespace drust::sync
