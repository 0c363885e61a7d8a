// Allocating and publishing. Freeing and adopting: free.cpp.
#include "heap/heap.hpp"

#include <algorithm>
#include <cstring>
#include <unistd.h>

#include "base/ensure.hpp"
#include "base/kill_point.hpp"
#include "base/limits.hpp"
#include "heap/arena.hpp"
#include "heap/mapping.hpp"

namespace drust::heap {
namespace {

constexpr std::uint64_t segments_for(std::uint64_t bytes) noexcept {
  return (bytes + kSegmentBytes - 1) / kSegmentBytes;
}

// What the pressure hook frees must not come back here for memory.
thread_local bool in_pressure_hook = false;
constexpr int kPressureRounds = 4;

}  // namespace

Heap::Heap(Partition& partition, ProcessId process)
    : partition_(partition),
      process_(process),
      pid_(::getpid()),
      arena_(std::make_unique<Arena>(partition.mapping_->segments, partition.mapping_->writable, process)) {}

Heap::~Heap() {
  // After the slot was given up, the spans are an adopter's.
  if (pid_ == ::getpid() && partition_.is_alive(process_)) arena_->reclaim();
}

Partition& Heap::partition() const noexcept { return partition_; }
ProcessId Heap::process() const noexcept { return process_; }
void Heap::set_pressure_hook(std::function<std::uint64_t(std::uint64_t)> hook) {
  pressure_hook_ = std::move(hook);
}
void Heap::set_replica_hook(std::function<void(Address, std::uint64_t)> hook) {
  replica_hook_ = std::move(hook);
}
void Heap::set_made_hook(std::function<void(const GlobalPointer&)> hook) { made_hook_ = std::move(hook); }
std::uint64_t Heap::reclaim() { return arena_->reclaim(); }

// -- allocating
// ------------------------------------------------------------------------------------------------------

Result<Address> Heap::try_obtain(std::uint64_t extent_bytes) {
  if (extent_bytes <= kSmallBlockBytesMax) {
    const Result<std::uint64_t> offset = arena_->take(class_of(extent_bytes));
    if (!offset.ok()) return offset.status();
    return Address::make(partition_.server(), offset.value());
  }
  Segments& segments = partition_.mapping_->segments;
  const std::uint64_t length = segments_for(extent_bytes);
  const Result<std::uint64_t> head = segments.claim(process_, SegmentKind::run, 0, length);
  if (!head.ok()) return head.status();
  const std::uint64_t offset = segments.offset_of(head.value());
  BlockHeader& header = partition_.mapping_->header_at(offset);
  header.capacity_bytes = length * kSegmentBytes;
  header.owner.store(owner_word(OwnerKind::process, process_), std::memory_order_relaxed);
  header.flags.store(0, std::memory_order_relaxed);
  header.state.store(filling(process_), std::memory_order_release);
  segments.settle(head.value());
  return Address::make(partition_.server(), offset);
}

Result<Address> Heap::obtain(std::uint64_t extent_bytes) {
  if (extent_bytes > kPartitionBytesMax) {
    return Status(Code::out_of_memory, "no partition is as large as that");
  }
  Result<Address> taken = try_obtain(extent_bytes);
  if (!taken.ok() && taken.status().code() == Code::out_of_memory) [[unlikely]] {
    if (arena_->reclaim() > 0) taken = try_obtain(extent_bytes);
    // Segments come back whole, so a little more is asked for each time.
    std::uint64_t wanted = std::max(segments_for(extent_bytes) * kSegmentBytes, kSpanBytesMax);
    for (int round = 0; !taken.ok() && round < kPressureRounds && pressure_hook_ && !in_pressure_hook;
         ++round) {
      in_pressure_hook = true;
      const std::uint64_t freed = pressure_hook_(wanted);
      in_pressure_hook = false;
      arena_->reclaim();
      taken = try_obtain(extent_bytes);  // also if nothing was freed: somebody else may have, in between
      if (freed == 0) break;
      wanted *= 2;
    }
    if (!taken.ok() && taken.status().code() == Code::out_of_memory) {
      const Usage usage = partition_.usage();
      return Status(Code::out_of_memory, "no room for " + std::to_string(extent_bytes) + " bytes on server " +
                                             std::to_string(partition_.server()) + ": " +
                                             taken.status().detail() + " (quota " +
                                             std::to_string(usage.quota_bytes) + ", in use " +
                                             std::to_string(usage.claimed_bytes) + ")");
    }
  }
  if (taken.ok()) {
    partition_.count(process_, Counter::allocations);
    partition_.count(process_, Counter::bytes_allocated, extent_bytes);
  }
  return taken;
}

Result<Address> Heap::allocate(const BlockShape& shape) {
  Result<Address> taken = obtain(shape.extent_bytes());
  if (taken.ok()) Block(partition_.writable(taken.value().offset_bytes())).lay_out(shape);
  return taken;
}

Result<Address> Heap::allocate_extent(std::uint64_t extent_bytes) {
  if (extent_bytes < sizeof(BlockHeader)) return Status(Code::bad_request, "a block is at least its header");
  Result<Address> taken = obtain(extent_bytes);
  if (taken.ok()) {
    const Block block(partition_.writable(taken.value().offset_bytes()));
    block.lay_out({});
    block.header().extent_bytes = extent_bytes;
  }
  return taken;
}

// -- publishing
// ------------------------------------------------------------------------------------------------------

Colour Heap::draw_colour() {
  std::uint64_t next = next_colour_.load(std::memory_order_relaxed);
  while (true) {
    if (next % kColourRange == 0)
        [[unlikely]] {  // the range is used up; its first number is this mark, never a colour
      const std::lock_guard lock(range_mutex_);
      next = next_colour_.load(std::memory_order_relaxed);
      if (next % kColourRange != 0) continue;
      const std::uint64_t range =
          partition_.mapping_->shared().next_colour_range.fetch_add(1, std::memory_order_relaxed);
      ensure(range < (1ULL << (64 - kIncarnationBits)) / kColourRange, "2^48 colours have been drawn");
      next = range * kColourRange + 2;
      next_colour_.store(next, std::memory_order_relaxed);
      --next;
      break;
    }
    if (next_colour_.compare_exchange_weak(next, next + 1, std::memory_order_relaxed)) break;
  }
  return (std::uint64_t{partition_.incarnation()} << (64 - kIncarnationBits)) | next;
}

GlobalPointer Heap::publish(Address address) {
  BlockHeader& header = partition_.mapping_->header_at(address.offset_bytes());
  const Colour colour = draw_colour();
  const std::uint64_t extent_bytes = header.extent_bytes;
  kill_point("heap.publish.before");
  std::uint64_t expected = filling(process_);
  const bool was_filling = header.state.compare_exchange_strong(expected, colour, std::memory_order_seq_cst);
  ensure(was_filling, "published a block that this process was not filling");
  kill_point("heap.publish.after");
  partition_.watch().note(Block(partition_.writable(address.offset_bytes())));
  return {address, colour, extent_bytes};
}

void Heap::adopt_children(Address address) noexcept {
  const Block block(partition_.writable(address.offset_bytes()));
  bool is_version = false;
  // First: with it, a reaper looks for children that have changed hands.
  block.header().flags.store(kAdopting, std::memory_order_release);
  for (ChildPointer& child : block.children()) {
    if ((child.flags & ChildPointer::kBorrowed) != 0 || child.address == 0) continue;
    if ((child.flags & ChildPointer::kKept) != 0) {
      is_version = true;
      continue;
    }
    // What contains a version is one: whoever frees it for a dead process must know.
    if (!partition_.is_local(child.pointer().address)) {
      is_version = is_version || (child.flags & ChildPointer::kMade) != 0;
      continue;
    }
    const Result<Block> below = partition_.find(child.pointer().address, child.colour);
    if (below.ok() && is_of_version(below.value().header().owner.load())) {
      is_version = true;
      child.flags |= ChildPointer::kMade;  // for wherever this block goes
    }
    set_owner(child.pointer(), parent_word(address));
  }
  if (is_version) block.header().owner.store(owner_word(OwnerKind::borrower, process_), std::memory_order_release);
}

void Heap::share_children(Address address) noexcept {
  const Block block(partition_.writable(address.offset_bytes()));
  bool shares = false;
  for (ChildPointer& child : block.children()) {
    if ((child.flags & ChildPointer::kBorrowed) != 0) continue;
    child.flags |= ChildPointer::kKept;
    shares = true;
  }
  if (shares) block.header().owner.store(owner_word(OwnerKind::borrower, process_), std::memory_order_release);
}

Result<GlobalPointer> Heap::publish_received(Address address, const BlockHeader& sent, bool lent) {
  const Block block(partition_.writable(address.offset_bytes()));
  BlockHeader& header = block.header();
  header.codec = sent.codec;
  header.child_count = sent.child_count;
  header.buffer_count = sent.buffer_count;
  header.meta_bytes = sent.meta_bytes;
  header.value_bytes = sent.value_bytes;
  if (sent.extent_bytes != header.extent_bytes ||
      !Block::is_well_formed(block.start(), header.extent_bytes)) {
    abandon(address);
    return Status(Code::bad_request, "the tables of a received block do not fit its extent");
  }
  for (ChildPointer& child : block.children()) {
    if ((child.flags & ChildPointer::kTied) != 0) child.flags |= ChildPointer::kShared;  // still the original's
  }
  if (lent) share_children(address);
  return publish(address);
}

void Heap::abandon(Address address) noexcept {
  Place place;
  const bool there = partition_.mapping_->segments.locate(address.offset_bytes(), place);
  ensure(there && partition_.mapping_->header_at(place.offset_bytes).state.load() == filling(process_),
         "abandoned a block that this process was not filling");
  give_back(place);
}

Result<GlobalPointer> Heap::recolour(const GlobalPointer& pointer) {
  Result<Block> found = partition_.find(pointer.address, pointer.colour);
  if (!found.ok()) return found.status();
  BlockHeader& header = found.value().header();
  const std::uint64_t extent_bytes = header.extent_bytes;
  const Colour colour = draw_colour();
  std::uint64_t expected = pointer.colour;
  header.before.store(static_cast<std::uint32_t>(pointer.colour), std::memory_order_relaxed);
  if (!header.state.compare_exchange_strong(expected, colour, std::memory_order_acq_rel)) {
    return Status(Code::stale, "another colour");
  }
  // The replica stays what the lender would be rolled back to, until this version is sent there too.
  if (header.flags.load(std::memory_order_relaxed) != 0) header.flags.fetch_and(~std::uint32_t{kReplicated | kWriting});
  return GlobalPointer{pointer.address, colour, extent_bytes};
}

void Heap::begin_writing(const GlobalPointer& pointer) noexcept {
  if (const Result<Block> found = partition_.find(pointer.address, pointer.colour); found.ok())
    found.value().header().flags.fetch_or(kWriting);
}

void Heap::end_writing(const GlobalPointer& pointer) noexcept {
  const Result<Block> found = partition_.find(pointer.address, pointer.colour);
  if (!found.ok()) return;
  std::atomic<std::uint32_t>& flags = found.value().header().flags;
  if ((flags.load(std::memory_order_relaxed) & kWriting) != 0) flags.fetch_and(~std::uint32_t{kWriting});
}

Result<GlobalPointer> Heap::duplicate(const GlobalPointer& pointer, bool lent) {
  Result<Block> source = partition_.find(pointer.address, pointer.colour);
  if (!source.ok()) return source.status();
  const BlockHeader& from = source.value().header();
  const std::uint64_t extent_bytes = from.extent_bytes;
  Result<Address> taken = allocate_extent(extent_bytes);
  if (!taken.ok()) return taken.status();
  const Block copy(partition_.writable(taken.value().offset_bytes()));
  std::memcpy(copy.start() + sizeof(BlockHeader), source.value().start() + sizeof(BlockHeader),
              extent_bytes - sizeof(BlockHeader));
  BlockHeader& to = copy.header();
  to.codec = from.codec;
  to.child_count = from.child_count;
  to.buffer_count = from.buffer_count;
  to.meta_bytes = from.meta_bytes;
  to.value_bytes = from.value_bytes;
  if (from.state.load(std::memory_order_acquire) != pointer.colour) {
    abandon(taken.value());
    return Status(Code::stale, "freed or changed while it was copied");
  }
  partition_.count(process_, Counter::blocks_copied);
  partition_.count(process_, Counter::bytes_copied, extent_bytes);
  if (lent) share_children(taken.value());
  return publish(taken.value());
}

bool Heap::is_of_version(std::uint64_t owner) const noexcept {
  constexpr int kDepthMax = 64;  // words that an older parent has left behind may go round in circles
  for (int depth = 0; depth < kDepthMax && owner_kind(owner) == OwnerKind::parent; ++depth) {
    const Result<Block> around = partition_.find(owner_parent(owner), kNoColour);
    if (!around.ok()) return false;
    owner = around.value().header().owner.load(std::memory_order_acquire);
  }
  return owner == owner_word(OwnerKind::borrower, process_);
}

bool Heap::make_own(const GlobalPointer& pointer) noexcept {
  const Result<Block> found = partition_.find(pointer.address, pointer.colour);
  if (!found.ok()) return false;
  const bool stays_version = is_of_version(found.value().header().owner.load(std::memory_order_acquire));
  return set_owner(pointer, owner_word(stays_version ? OwnerKind::borrower : OwnerKind::process, process_));
}

bool Heap::set_owner(const GlobalPointer& pointer, std::uint64_t owner_word) noexcept {
  Result<Block> found = partition_.find(pointer.address, pointer.colour);
  if (!found.ok()) return false;
  std::atomic<std::uint64_t>& owner = found.value().header().owner;
  std::uint64_t seen = owner.load(std::memory_order_acquire);
  while (!owner.compare_exchange_weak(seen, owner_word, std::memory_order_acq_rel)) {
  }
  return true;
}

bool Heap::change_owner(const GlobalPointer& pointer, std::uint64_t expected, std::uint64_t owner_word) noexcept {
  Result<Block> found = partition_.find(pointer.address, pointer.colour);
  return found.ok() && found.value().header().owner.compare_exchange_strong(expected, owner_word,
                                                                            std::memory_order_acq_rel);
}

}  // namespace drust::heap
