// One server's share of the global heap: one memfd, reserved large, backed on demand, mapped twice by every
// process.
//
//     | PartitionHeader | processes | counters | endpoints | loads | task queue | copy table | outboxes | segment table | segments ... |
//
// The memfd has no name in any file system: when the last process that maps it ends, however it ends, nothing
// is left. It travels to a worker over a unix socket (SCM_RIGHTS). Segments are really allocated (fallocate)
// when claimed, so that running out of memory is an answer (Code::out_of_memory), never SIGBUS; free ones go
// back to the system, after a while. Both mappings are MADV_DONTFORK: a forked child finds no heap rather
// than a shared one it may not touch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/address.hpp"
#include "base/futex.hpp"
#include "base/status.hpp"
#include "heap/block.hpp"
#include "heap/watch.hpp"

namespace drust::heap {

enum class ProcessKind : std::uint8_t { none, server, driver, worker };

// What every process counts about itself; each counter has one writer process (atomic adds, relaxed), anybody
// reads.
enum class Counter : std::uint32_t {
  read_requests,        // messages this process sent, by kind
  write_requests,
  free_messages,        // batches of frees
  frees_sent,           // frees inside them
  submit_messages,
  complete_messages,
  control_messages,
  bytes_received,       // payload bytes over the wire
  bytes_sent,
  allocations,
  bytes_allocated,
  frees,
  blocks_copied,        // blocks copied inside this host (survivors of a view, clone, adoption)
  bytes_copied,
  copy_hits,            // copy table
  copy_misses,
  copies_evicted,
  encodes,              // values serialised by a codec, and their bytes
  bytes_encoded,
  decodes,
  moves_in,             // objects moved here by a mutable borrow
  borrows,
  mutable_borrows,
  tasks_run,
  messages_served,      // requests answered by a server
  frames_rejected,      // malformed or unauthenticated
  replica_messages,     // commits sent to a backup server
  blocks_replicated,    // blocks and bytes inside them
  bytes_replicated,
  results_unreplicated, // handed over all the same, as their callers wait for them
  shared_messages,      // steps at shared objects of other servers
  count_
};
inline constexpr std::uint32_t kCounters = static_cast<std::uint32_t>(Counter::count_);

struct CreateOptions {
  ServerId server = 0;
  std::uint16_t incarnation = 1;    // never 0
  std::uint64_t heap_bytes = 0;     // the quota: segments claimed never exceed it
  std::uint64_t warm_bytes = 64ULL << 20;  // free segments kept backed for reuse, before trim() lets them decay
  bool replicates_all = false;      // what is handed over has replicas, unless its pointer says that it is excepted
};

struct Endpoint {
  std::uint64_t epoch = 0;          // raised at each change; 0: no such server
  std::string host;                 // numeric address, at most 63 bytes
  std::uint16_t port = 0;           // 0: nobody listens, the server is lost
  ServerId by = kNoServer;          // the server that answers in its place, if another does
  ServerId backup = kNoServer;      // where its replicas are
  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

// How busy a server is, as every partition keeps it of every server.
struct Load {
  std::uint64_t age_ms = 0;         // since it was measured; of a row that was never written, as old as can be
  std::uint64_t workers = 0;        // processes that run tasks
  std::uint64_t idle = 0;           // of them, those that wait for one
  std::uint64_t queued = 0;         // tasks that wait
  std::uint64_t sent = 0;           // tasks that this host has sent there since
  std::uint64_t cpu_permille = 0;   // of the machine's processors
  std::uint64_t quota_bytes = 0;
  std::uint64_t claimed_bytes = 0;
};

struct ProcessInfo {
  ProcessId id;
  ProcessKind kind = ProcessKind::none;
  std::uint32_t pid = 0;
  std::uint64_t start_time = 0;     // of the pid, from /proc/<pid>/stat: tells a reused pid
  std::uint64_t counters[kCounters] = {};
};

struct Usage {
  std::uint64_t quota_bytes = 0;
  std::uint64_t claimed_bytes = 0;  // segments in use
  std::uint64_t warm_bytes = 0;     // free but still backed
};

struct BlockInfo {                  // a row of "the largest objects"
  GlobalPointer pointer;
  std::uint64_t owner = 0;          // owner_word
  std::uint32_t codec = 0;
};

class Partition {
 public:
  static Result<std::unique_ptr<Partition>> create(const CreateOptions& options);
  // Maps a partition made by create(); takes ownership of `memfd`. version_mismatch if another build made it.
  static Result<std::unique_ptr<Partition>> attach(int memfd);
  ~Partition();
  Partition(const Partition&) = delete;
  Partition& operator=(const Partition&) = delete;

  [[nodiscard]] int memfd() const noexcept;
  [[nodiscard]] ServerId server() const noexcept;
  [[nodiscard]] std::uint16_t incarnation() const noexcept;
  [[nodiscard]] bool is_local(Address address) const noexcept { return address.server() == server(); }

  // The same byte through the writable and through the read-only mapping. `offset_bytes` is trusted: see
  // find().
  [[nodiscard]] std::byte* writable(std::uint64_t offset_bytes) const noexcept;
  [[nodiscard]] std::byte* readable(std::uint64_t offset_bytes) const noexcept;  // page-protected: writing faults
  [[nodiscard]] std::uint64_t offset_of(const std::byte* place) const noexcept;  // of either mapping

  // The live block at `address`, checked against the segment table before its memory is touched (a hole in
  // the memfd would be backed by looking at it): not_found if nothing is there, stale if its colour is
  // another. Any address is safe to ask. `colour` kNoColour accepts any live version.
  [[nodiscard]] Result<Block> find(Address address, Colour colour) const noexcept;

  // Process slots. The end of a process, in this order, by the server's control plane:
  //     declare_dead(p)                    is_alive() is false from here on: waits for p end
  //     Queue::reap(p), Copies::reap(p), Heap::adopt(p)
  //     release_process(p)                 the slot may be claimed again
  // Releasing first would let a newcomer's pins, which are a bit a slot, be reaped in place of the dead
  // one's.
  Result<ProcessId> claim_process(ProcessKind kind, std::uint32_t pid);
  void declare_dead(ProcessId process) noexcept;
  void release_process(ProcessId process) noexcept;
  [[nodiscard]] bool is_alive(ProcessId process) const noexcept;   // has its slot, not declared dead
  // Dead or gone, and nobody else has the slot yet: what is kept a slot, not a generation, may be reaped.
  [[nodiscard]] bool is_reapable(ProcessId process) const noexcept;
  [[nodiscard]] std::vector<ProcessInfo> processes() const;        // live ones
  void count(ProcessId process, Counter counter, std::uint64_t amount = 1) const noexcept;
  [[nodiscard]] std::vector<std::uint64_t> counters() const;       // sums over every process that ever counted

  // server id -> endpoint; written by the server's control plane only, read by anybody, who waits for nobody
  // (latched.hpp).
  void set_endpoint(ServerId server, const Endpoint& endpoint) noexcept;
  [[nodiscard]] Endpoint endpoint(ServerId server) const;
  [[nodiscard]] std::vector<ServerId> servers() const;  // all that the table has
  // Sleeps until the row of `server` is another than `seen`: true. False at `deadline`, when the partition closes, or
  // if there is no such row. Woken by who writes the row.
  [[nodiscard]] bool await_endpoint(ServerId server, const Endpoint& seen, Deadline deadline) const;

  // server id -> load. Written by one thread of the server at a time; read, and its `sent` raised, by anybody. loads.cpp
  void set_load(ServerId server, const Load& load) noexcept;
  [[nodiscard]] Load load(ServerId server) const noexcept;
  void note_sent(ServerId server, std::uint64_t tasks) noexcept;

  // The session's setting; constant.
  [[nodiscard]] bool replicates_all() const noexcept;
  // A number larger than any drawn before by any process of this host, also before it was started again: orders
  // what backup servers are told.
  [[nodiscard]] std::uint64_t draw_replica_stamp() const noexcept;
  // Whether one was ever drawn: else no other server has heard of replicas of this one.
  [[nodiscard]] bool has_replicated() const noexcept;

  // Set once by the server when it begins to close; every wait in the partition ends: the first word of the
  // queue area and of the copy area is a futex that this changes and wakes, other waits look every
  // kWaitSliceMs.
  void close() noexcept;
  [[nodiscard]] bool is_closed() const noexcept;

  // The bell of the server's attendant (server/attendant.hpp): rung when a shared object may have lost its last hold,
  // or when something that a process of another server waits for has come. One system call, from any process.
  void ring_bell() noexcept;
  void add_mark() noexcept;  // and rings
  [[nodiscard]] std::uint32_t marks() const noexcept;
  [[nodiscard]] std::uint32_t bell() const noexcept;
  void wait_bell(std::uint32_t seen, Deadline deadline) const noexcept;

  [[nodiscard]] Usage usage() const noexcept;
  [[nodiscard]] std::vector<BlockInfo> largest_blocks(std::size_t most) const;
  [[nodiscard]] std::uint64_t live_blocks() const noexcept;        // by scanning headers: for tests and accounting
  [[nodiscard]] std::uint64_t live_bytes() const noexcept;         // sum of extents of live blocks, by scanning
  // Every live block, by scanning headers (10 ns each, more where they are not in a cache). Blocks that
  // others free or publish meanwhile may or may not be seen.
  void each_live_block(const std::function<void(const BlockInfo&)>& visit) const;
  // The address of every child in their tables, but for those of copies, whatever its flags say; 0 for an empty row.
  void each_live_child(const std::function<void(std::uint64_t)>& visit) const;
  [[nodiscard]] Watch watch() const noexcept;
  // Gives back free segments until at most `keep_bytes` stay warm. Called by the server as they age. Returns
  // bytes given.
  std::uint64_t trim(std::uint64_t keep_bytes) noexcept;

  // Fixed areas of the partition for the rooms right of this one; zero-filled at creation, 64-byte aligned.
  [[nodiscard]] std::byte* queue_area() const noexcept;      // kQueueAreaBytes
  [[nodiscard]] std::byte* copy_table_area() const noexcept; // kCopyAreaBytes
  [[nodiscard]] std::byte* arrivals_area() const noexcept;   // kArrivalsAreaBytes
  static constexpr std::uint64_t kQueueAreaBytes = 4096 + kQueueEntries * 128ULL;
  static constexpr std::uint64_t kCopyAreaBytes = 4096 + kCopiesMax * 128ULL;
  static constexpr std::uint64_t kArrivalsAreaBytes = kProcessesMax * (64 + kArrivalsKept * 8ULL);

 private:
  friend class Heap;
  Partition();
  struct Mapping;  // mapping.hpp; what lies in shared memory and who writes it: layout.hpp
  std::unique_ptr<Mapping> mapping_;
};

}  // namespace drust::heap
