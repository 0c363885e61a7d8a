// The layout of one value on the heap: one contiguous block.
//
//     +--------+---------------+--------------+----------+---------+-----+
//     | header | child pointers| buffer table | metadata | buffers, each aligned to 64 bytes ...
//     | 64 B   | 32 B each     | 16 B each    | bytes    |
//     +--------+---------------+--------------+----------+---------+-----+
//
// The child table and the buffer table let native code free a tree, fetch a group, patch a moved child and
// bounds-check bytes from the wire without running Python. The codec number and the metadata mean something
// only to src/drust/codecs.
//
// The header's `state` word is the only truth about a block; free lists and counters are caches of it that
// anybody may rebuild by reading headers. It holds one of
//     0                       free
//     filling(process)        allocated by that process, bytes not complete: freed by whoever adopts its arena
//     freeing(process)        its tree is being freed by that process: freed to the end by whoever adopts it
//     a colour                live, at that version (its top 16 bits, the incarnation, are never 0)
// and moves only by compare-and-swap: allocate 0 -> filling, publish filling -> colour, end of a mutable
// borrow colour -> colour', free colour -> 0 (by way of freeing where there are children to free or segments
// to give back). A late or repeated free therefore cannot hit the block that reused the address.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/address.hpp"
#include "base/status.hpp"

namespace drust::heap {

// A process as others name it: its slot in the partition and the slot's generation (pids are reused, this is
// not).
struct ProcessId {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;  // 24 bits are kept
  friend constexpr bool operator==(const ProcessId&, const ProcessId&) noexcept = default;
};

inline constexpr std::uint64_t kFree = 0;
inline constexpr std::uint64_t kFillingTag = 1ULL << 47;  // below the incarnation bits, above slot and generation
[[nodiscard]] constexpr std::uint64_t filling(ProcessId process) noexcept {
  return kFillingTag | (static_cast<std::uint64_t>(process.generation & 0xffffffU) << 16) | process.slot;
}
inline constexpr std::uint64_t kFreeingTag = 1ULL << 46;
[[nodiscard]] constexpr std::uint64_t freeing(ProcessId process) noexcept {
  return kFreeingTag | filling(process);
}
[[nodiscard]] constexpr bool is_colour(std::uint64_t state) noexcept { return (state >> 48) != 0; }

// Who answers for a block's life, so that a process's death leaves nothing that nobody frees. Changed by
// compare-and-swap.
//     none        somebody on another server: this one was told when it is to go
//     process     that process: it, and the tree below it, end with the process
//     borrower    a version that a task of that process made of what it was lent: it ends with the process too, but
//                 the children it shares with its pre-image (ChildPointer::kKept) stay the lender's
//     parent      the block at that address, in whose child table it stands, or stood: a block that moves on, or goes
//                 alone, leaves the word as it is, and its address is used again
//     in_transit  a call or a completion that this process is sending: whoever reaps it learns whether it arrived
//     copy        the copy table
//     queue       a call block that an entry of the task queue names
//     replica     the backup of another server's block (server/replicas.hpp)
//     holds       a shared object: it lives while a hold names it (heap/shared.hpp)
//     receiver    a message on its way to a process of another server, which frees it when its copy has arrived; the
//                 rest of the word is that process (sync/who.hpp)
enum class OwnerKind : std::uint8_t { none, process, parent, in_transit, copy, queue, borrower, replica, holds, receiver };
[[nodiscard]] constexpr std::uint64_t owner_word(OwnerKind kind, ProcessId process) noexcept {
  return (static_cast<std::uint64_t>(kind) << 56) | (static_cast<std::uint64_t>(process.generation & 0xffffffU) << 16) |
         process.slot;
}
[[nodiscard]] constexpr OwnerKind owner_kind(std::uint64_t word) noexcept { return static_cast<OwnerKind>(word >> 56); }
[[nodiscard]] constexpr ProcessId owner_process(std::uint64_t word) noexcept {
  return {static_cast<std::uint32_t>(word & 0xffffU), static_cast<std::uint32_t>((word >> 16) & 0xffffffU)};
}

// The word of a block that the block at `parent` owns.
[[nodiscard]] constexpr std::uint64_t parent_word(Address parent) noexcept {
  return (static_cast<std::uint64_t>(OwnerKind::parent) << 56) | parent.raw();
}
[[nodiscard]] constexpr Address owner_parent(std::uint64_t word) noexcept {
  return Address(word & ((1ULL << (kServerBits + kGranuleBits)) - 1));
}
// Bits of BlockHeader::flags: what was done with the bytes at this address. They end with the block.
enum BlockFlag : std::uint32_t {
  kReplicated = 1,  // this very version is on the backup server; a new colour clears it
  kHasReplica = 2,  // some version of this block was sent there, or is about to be: its free must be told
  kAdopting = 4,    // the owner words of its children are being given its address; nothing once it is published
  kWriting = 8,     // a borrower began to write in place under the colour that was lent; the next colour clears it
};

struct BlockHeader {
  std::atomic<std::uint64_t> state;   // see above; any process, compare-and-swap
  std::atomic<std::uint64_t> owner;   // owner_word(); any process, compare-and-swap
  std::uint64_t extent_bytes;         // header to the end of the last buffer; constant while live
  std::uint64_t capacity_bytes;       // bytes the allocator set aside; constant while the span exists
  std::uint32_t codec;                // constant while live, as all below
  std::uint32_t child_count;
  std::uint32_t buffer_count;
  std::uint32_t meta_bytes;
  std::uint64_t value_bytes;          // what a person would call its size: bytes of buffers
  // Low half of the colour before this one, if the bytes were written in place; 0: as they were published first.
  std::atomic<std::uint32_t> before;  // whoever draws the colour; anybody
  std::atomic<std::uint32_t> flags;   // BlockFlag; any process
};
static_assert(sizeof(BlockHeader) == 64);

struct ChildPointer {
  static constexpr std::uint64_t kTied = 1;      // fetched and moved together with the parent
  static constexpr std::uint64_t kShared = 2;    // in a task's arguments: lent shared, not owned by this block
  static constexpr std::uint64_t kMutable = 4;   // in a task's arguments: lent mutably, not owned by this block
  static constexpr std::uint64_t kBorrowed = kShared | kMutable;
  static constexpr std::uint64_t kKept = 8;   // in a version a borrower made: the pre-image owns this child as well
  static constexpr std::uint64_t kUndo = 16;  // in a task's arguments: keep a pre-image whatever the size
  static constexpr std::uint64_t kPart = 32;  // in a task's arguments: a part of it; its colour is the lender's to draw
  static constexpr std::uint64_t kRelent = 64;  // in a task's arguments: on loan to the lender too
  // Of replicas, the value is an exception from what its session says. The owner's choice: it goes with every pointer
  // that is handed over, whatever block the value is in, and not with the block.
  static constexpr std::uint64_t kExcepted = 128;
  static constexpr std::uint64_t kHeld = 256;      // in a hold: the shared object that it keeps alive (shared.hpp)
  static constexpr std::uint64_t kOtherEnd = 512;  // with kHeld: by its second role, a channel's receiver
  static constexpr std::uint64_t kHold = 1024;     // this child is a hold; what of, and by which role, is in kHoldKind
  static constexpr std::uint32_t kHoldKindShift = 11;
  static constexpr std::uint64_t kHoldKind = 0x1fULL << kHoldKindShift;
  // In a version, of a child on another server: it is one, too (its owner word cannot be read from here).
  static constexpr std::uint64_t kMade = 1ULL << (kHoldKindShift + 5);
  static constexpr std::uint64_t kFlags = kTied | kBorrowed | kKept | kUndo | kPart | kRelent | kExcepted | kHeld |
                                          kOtherEnd | kHold | kHoldKind | kMade;
  std::uint64_t address;
  std::uint64_t colour;
  std::uint64_t extent_bytes;
  std::uint64_t flags;
  [[nodiscard]] GlobalPointer pointer() const noexcept { return {Address(address), colour, extent_bytes}; }
};
static_assert(sizeof(ChildPointer) == 32);

struct BufferSpan {
  std::uint64_t offset_bytes;  // from the start of the block, a multiple of 64
  std::uint64_t bytes;
};
static_assert(sizeof(BufferSpan) == 16);

// What to allocate: sizes only. extent_bytes() is the block it needs.
struct BlockShape {
  std::uint32_t codec = 0;
  std::uint32_t child_count = 0;
  std::uint32_t meta_bytes = 0;
  std::span<const std::uint64_t> buffer_bytes;
  [[nodiscard]] std::uint64_t extent_bytes() const noexcept;
};

// A view of one block through either mapping. Cheap to copy; keeps nothing alive.
class Block {
 public:
  explicit Block(std::byte* start) noexcept : start_(start) {}
  [[nodiscard]] BlockHeader& header() const noexcept { return *reinterpret_cast<BlockHeader*>(start_); }
  [[nodiscard]] std::byte* start() const noexcept { return start_; }
  [[nodiscard]] std::span<ChildPointer> children() const noexcept;
  [[nodiscard]] std::span<BufferSpan> buffers() const noexcept;
  [[nodiscard]] std::span<std::byte> meta() const noexcept;
  [[nodiscard]] std::span<std::byte> buffer(std::uint32_t index) const noexcept;

  // Writes sizes, tables and offsets for `shape` (not state and owner); the caller fills children, meta and
  // buffers.
  void lay_out(const BlockShape& shape) const noexcept;
  // True if every table and buffer of a block whose body came from a peer lies inside `extent_bytes`.
  [[nodiscard]] static bool is_well_formed(const std::byte* start, std::uint64_t extent_bytes) noexcept;

 private:
  std::byte* start_;
};

}  // namespace drust::heap
