// Making, mapping and looking into a partition. Process slots, counters and endpoints: processes.cpp.
#include "heap/partition.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/ensure.hpp"
#include "base/futex.hpp"
#include "heap/mapping.hpp"

namespace drust::heap {

Partition::Mapping::~Mapping() {
  if (mapped_by == ::getpid()) {
    if (writable != nullptr) ::munmap(writable, file_bytes);
    if (readable != nullptr) ::munmap(readable, file_bytes);
  }
  if (memfd >= 0) ::close(memfd);
}

Status Partition::Mapping::map(std::uint64_t bytes) {
  file_bytes = bytes;
  mapped_by = ::getpid();
  for (std::byte** target : {&writable, &readable}) {
    const int protection = target == &writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void* start = ::mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, memfd, 0);
    if (start == MAP_FAILED) return system_error("mmap of the partition");
    *target = static_cast<std::byte*>(start);
    if (::madvise(start, bytes, MADV_DONTFORK) != 0) return system_error("madvise(MADV_DONTFORK)");
  }
  return Status();
}

Partition::Partition() : mapping_(std::make_unique<Mapping>()) {}
Partition::~Partition() = default;

Result<std::unique_ptr<Partition>> Partition::create(const CreateOptions& options) {
  if (options.server >= kServersMax || options.incarnation == 0 || options.heap_bytes < 2 * kSpanBytesMax) {
    return Status(Code::bad_request, "a partition needs a server below " + std::to_string(kServersMax) +
                                         ", an incarnation and at least " +
                                         std::to_string(2 * kSpanBytesMax) + " bytes");
  }
  // Twice the quota of addresses: that free segments lie scattered then rarely matters, and addresses cost
  // nothing but 12 bytes of table a segment.
  const std::uint64_t quota = options.heap_bytes / kSegmentBytes;
  const auto segments_offset = [](std::uint64_t count) {
    const std::uint64_t end = kTableOffset + pages(count * 8) + pages(count * 4);
    return (end + kSegmentBytes - 1) / kSegmentBytes * kSegmentBytes;
  };
  const std::uint64_t most =
      (kPartitionBytesMax - segments_offset(kPartitionBytesMax / kSegmentBytes)) / kSegmentBytes;
  if (quota > most) {
    return Status(Code::bad_request,
                  "a partition has at most " + std::to_string(most * kSegmentBytes) + " bytes");
  }
  const std::uint64_t count = std::min(most, 2 * quota);
  const std::uint64_t tables = segments_offset(count);
  const std::uint64_t bytes = tables + count * kSegmentBytes;

  auto partition = std::unique_ptr<Partition>(new Partition());
  Mapping& mapping = *partition->mapping_;
  mapping.memfd = ::memfd_create("drust", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (mapping.memfd < 0) return system_error("memfd_create");
  if (::ftruncate(mapping.memfd, static_cast<off_t>(bytes)) != 0)
    return system_error("ftruncate of the partition");
  if (const int error = change_backing(mapping.memfd, 0, 0, tables); error != 0) {
    errno = error;
    if (error == ENOSPC || error == ENOMEM)
      return Status(Code::out_of_memory, "no memory for the partition's tables");
    return system_error("fallocate of the partition's tables");
  }
  // A file that shrank under a mapping would turn reads into SIGBUS.
  if (::fcntl(mapping.memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return system_error("fcntl(F_ADD_SEALS)");
  if (Status status = mapping.map(bytes); !status.ok()) return status;

  SharedHeader& shared = mapping.shared();
  shared.file_bytes = bytes;
  shared.quota_segments = quota;
  shared.warm_segments_kept = options.warm_bytes / kSegmentBytes;
  shared.segment_count = count;
  shared.segments_offset = tables;
  shared.server = options.server;
  shared.incarnation = options.incarnation;
  shared.replicates_all = options.replicates_all ? 1 : 0;
  shared.layout = kLayout;
  shared.magic = kMagic;
  mapping.server = options.server;
  mapping.segments = Segments(mapping.writable, mapping.memfd);
  return partition;
}

Result<std::unique_ptr<Partition>> Partition::attach(int memfd) {
  auto partition = std::unique_ptr<Partition>(new Partition());
  Mapping& mapping = *partition->mapping_;
  mapping.memfd = memfd;
  struct stat file = {};
  if (::fstat(memfd, &file) != 0) return system_error("fstat of the partition");
  std::uint64_t head[3] = {};  // magic, layout, file_bytes
  static_assert(offsetof(SharedHeader, file_bytes) == 16);
  if (::pread(memfd, head, sizeof head, 0) != static_cast<ssize_t>(sizeof head) || head[0] != kMagic) {
    return Status(Code::bad_request, "this file is no partition");
  }
  if (head[1] != kLayout)
    return Status(Code::version_mismatch, "the partition was made by another build of drust");
  if (head[2] != static_cast<std::uint64_t>(file.st_size))
    return Status(Code::bad_request, "the partition is cut short");
  if (Status status = mapping.map(head[2]); !status.ok()) return status;
  mapping.server = mapping.shared().server;
  mapping.segments = Segments(mapping.writable, memfd);
  return partition;
}

int Partition::memfd() const noexcept { return mapping_->memfd; }
ServerId Partition::server() const noexcept { return mapping_->server; }
std::uint16_t Partition::incarnation() const noexcept {
  return static_cast<std::uint16_t>(mapping_->shared().incarnation);
}
std::byte* Partition::writable(std::uint64_t offset_bytes) const noexcept {
  return mapping_->writable + offset_bytes;
}
std::byte* Partition::readable(std::uint64_t offset_bytes) const noexcept {
  return mapping_->readable + offset_bytes;
}

std::uint64_t Partition::offset_of(const std::byte* place) const noexcept {
  const Mapping& mapping = *mapping_;
  if (place >= mapping.writable && place < mapping.writable + mapping.file_bytes) {
    return static_cast<std::uint64_t>(place - mapping.writable);
  }
  ensure(place >= mapping.readable && place < mapping.readable + mapping.file_bytes,
         "a place outside the partition");
  return static_cast<std::uint64_t>(place - mapping.readable);
}

Result<Block> Partition::find(Address address, Colour colour) const noexcept {
  const Mapping& mapping = *mapping_;
  Place place;
  std::uint64_t state = 0;
  do {
    if (!is_local(address) || !mapping.segments.locate(address.offset_bytes(), place)) {
      return Status(Code::not_found, "no block there");
    }
    state = mapping.header_at(place.offset_bytes).state.load(std::memory_order_acquire);
    // If the segment changed hands meanwhile, what was read may be no header; or its maker has died, and it is.
  } while (mapping.segments.entry(place.head).word() != place.entry.word());
  if (!is_colour(state)) return Status(Code::not_found, "no block there");
  if (colour != kNoColour && state != colour) return Status(Code::stale, "another colour");
  return Block(mapping.writable + place.offset_bytes);
}

std::uint64_t Partition::draw_replica_stamp() const noexcept {
  const SharedHeader& shared = mapping_->shared();
  return (std::uint64_t{shared.incarnation} << (64 - kIncarnationBits)) | (mapping_->shared().replica_stamp.fetch_add(1) + 1);
}

bool Partition::has_replicated() const noexcept { return mapping_->shared().replica_stamp.load() != 0; }
bool Partition::replicates_all() const noexcept { return mapping_->shared().replicates_all != 0; }

void Partition::close() noexcept {
  mapping_->shared().closed.store(1);
  for (const std::uint64_t offset : {kQueueOffset, kCopiesOffset}) {
    auto& word = *reinterpret_cast<std::atomic<std::uint32_t>*>(mapping_->writable + offset);
    word.fetch_add(1);
    futex_wake(word, kEverybody);
  }
  ring_bell();
}

void Partition::ring_bell() noexcept {
  std::atomic<std::uint32_t>& bell = mapping_->shared().bell;
  bell.fetch_add(1);
  futex_wake(bell, kEverybody);
}

void Partition::add_mark() noexcept {
  mapping_->shared().marks.fetch_add(1);
  ring_bell();
}

std::uint32_t Partition::marks() const noexcept { return mapping_->shared().marks.load(); }

std::uint32_t Partition::bell() const noexcept { return mapping_->shared().bell.load(); }

void Partition::wait_bell(std::uint32_t seen, Deadline deadline) const noexcept {
  static_cast<void>(futex_wait(mapping_->shared().bell, seen, deadline));
}

bool Partition::is_closed() const noexcept {
  return mapping_->shared().closed.load(std::memory_order_acquire) != 0;
}

Usage Partition::usage() const noexcept {
  const SharedHeader& shared = mapping_->shared();
  const auto bytes = [](const SharedWord& segments) {
    const auto count = static_cast<std::int64_t>(segments.load(std::memory_order_acquire));
    return static_cast<std::uint64_t>(std::max<std::int64_t>(count, 0)) * kSegmentBytes;
  };
  return {shared.quota_segments * kSegmentBytes, bytes(shared.claimed_segments), bytes(shared.warm_segments)};
}

void Partition::each_live_block(const std::function<void(const BlockInfo&)>& visit) const {
  mapping_->each_block([&](std::uint64_t, SegmentEntry, std::uint64_t offset, const BlockHeader& header) {
    const std::uint64_t state = header.state.load(std::memory_order_acquire);
    if (!is_colour(state)) return;
    visit({{Address::make(server(), offset), state, header.extent_bytes}, header.owner.load(), header.codec});
  });
}

// A block that is freed and used again meanwhile gives some numbers that name nothing. A copy owns nothing.
void Partition::each_live_child(const std::function<void(std::uint64_t)>& visit) const {
  mapping_->each_block([&](std::uint64_t, SegmentEntry, std::uint64_t offset, const BlockHeader& header) {
    if (!is_colour(header.state.load(std::memory_order_seq_cst))) return;  // in one order with Watch::open()
    if (owner_kind(header.owner.load(std::memory_order_relaxed)) == OwnerKind::copy) return;
    const std::uint64_t room = header.capacity_bytes;
    const std::uint64_t count = header.child_count;
    if (room < sizeof(BlockHeader) || count > (room - sizeof(BlockHeader)) / sizeof(ChildPointer)) return;
    const auto* first = reinterpret_cast<const ChildPointer*>(mapping_->writable + offset + sizeof(BlockHeader));
    for (std::uint64_t index = 0; index < count; ++index) visit(first[index].address);
  });
}

std::vector<BlockInfo> Partition::largest_blocks(std::size_t most) const {
  // A heap whose top is the smallest of the `most` largest so far.
  const auto larger = [](const BlockInfo& a, const BlockInfo& b) {
    return a.pointer.extent_bytes > b.pointer.extent_bytes;
  };
  std::vector<BlockInfo> found;
  each_live_block([&](const BlockInfo& block) {
    if (found.size() == most && (most == 0 || !larger(block, found.front()))) return;
    if (found.size() == most) {
      std::pop_heap(found.begin(), found.end(), larger);
      found.pop_back();
    }
    found.push_back(block);
    std::push_heap(found.begin(), found.end(), larger);
  });
  std::sort_heap(found.begin(), found.end(), larger);
  return found;
}

std::uint64_t Partition::live_blocks() const noexcept {
  std::uint64_t count = 0;
  each_live_block([&](const BlockInfo&) { ++count; });
  return count;
}

std::uint64_t Partition::live_bytes() const noexcept {
  std::uint64_t bytes = 0;
  each_live_block([&](const BlockInfo& block) { bytes += block.pointer.extent_bytes; });
  return bytes;
}

std::uint64_t Partition::trim(std::uint64_t keep_bytes) noexcept {
  return mapping_->segments.trim(keep_bytes, {kNobody, 0});
}

std::byte* Partition::queue_area() const noexcept { return mapping_->writable + kQueueOffset; }
std::byte* Partition::copy_table_area() const noexcept { return mapping_->writable + kCopiesOffset; }
std::byte* Partition::arrivals_area() const noexcept { return mapping_->writable + kArrivalsOffset; }
Watch Partition::watch() const noexcept { return Watch(mapping_->writable + kWatchOffset); }

}  // namespace drust::heap
