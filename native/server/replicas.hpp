// The backup side of replication: versions of other servers' blocks, kept here until their own server frees
// them, and served in its place once it is lost.
//
//     address of the primary -> at most two versions {colour, stamp, block of this partition}
//
// Which of them stay is decided by protocol/replication.hpp.
//
// Each replica is an ordinary block of this partition (owner kind `replica`), so it counts against the quota,
// can be served like any other, and goes with the partition. The index is private memory of the server
// process: nobody else may look, and when it dies the replicas are lost with it, as they would be anyway.
//
// Two versions, because a version that is written in place (a new colour at the old address) arrives before
// its owner hears of it: a server that dies in between leaves its owner with the version before. When the
// owner has heard, a notice drops the older one.
//
// Stamps order what different processes of the primary's server say (the notice that a block is free, the
// replica of whatever came to its address next): a notice drops what is older than itself, however late it
// comes, and what comes after it and is older (its sender has died meanwhile) is not entered: for that the last
// notice of an address that has no versions is kept for kNoticesKeptMs.
//
// Closed: the primary is lost. From then on nothing that a process of it still says counts, neither a version
// nor a notice, as its owners have been told what they have. Closed are its incarnations up to the one that was
// lost: it may be started again, if there is nothing of it here.
//
// Confirmed: the version is owned by a process of a server other than its own. Receivers say so, when a
// completion or a task has arrived. What nobody confirmed dies with its owner when the server is lost, as it
// does without replicas: it is freed a little later (free_orphans), when those it was lent to have looked.
//
// Rejected: replicas found through the partition, so that processes of this host read them directly (a crash
// in the middle of an index in shared memory would need repair, to save a loopback round trip after a
// promotion); one staging buffer a batch, parsed at its end (a second copy of every byte).
// Source: Ma et al., OSDI'24, on fault tolerance: the backup is written when ownership leaves, not at each write.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"
#include "protocol/replication.hpp"

namespace drust::server {

// A version that has arrived, in a block of this partition that nobody knows of yet.
struct StagedReplica {
  GlobalPointer primary;
  std::uint64_t stamp = 0;
  bool is_confirmed = false;
  GlobalPointer local;
};

class Replicas {
 public:
  struct Usage {
    std::uint64_t versions = 0;
    std::uint64_t bytes = 0;  // their extents
  };
  struct Version {
    GlobalPointer primary;
    GlobalPointer local;
    std::uint64_t stamp = 0;
    bool is_confirmed = false;
  };

  explicit Replicas(heap::Heap& heap) : heap_(heap) {}
  Replicas(const Replicas&) = delete;
  Replicas& operator=(const Replicas&) = delete;

  // Enters all of a batch, or none: server_lost if the sender's server is closed; bad_request if it names a block
  // of this server. Empties `batch`.
  Status commit(std::vector<StagedReplica>& batch);
  // Frees staged blocks that were not committed.
  void abandon(std::vector<StagedReplica>& batch) noexcept;
  // Versions at this address with an older stamp go, unless its server is closed; the children of a confirmed one
  // are confirmed from now on, as whoever owns the next version of it owns them.
  void drop_older(Address address, std::uint64_t stamp);
  void confirm(Address address, Colour colour);

  // That incarnation of a server, and those before it, are lost: nothing comes or goes by its word any more. Returns
  // what there is of the server.
  Usage close(ServerId server, std::uint16_t incarnation);
  // From now on this server answers for the addresses of that one, which is closed for good. Returns what it has.
  Usage promote(ServerId server);
  [[nodiscard]] bool is_promoted(ServerId server) const;
  // The block here that holds a version of a server whose place was taken: not_found or stale otherwise.
  [[nodiscard]] Result<GlobalPointer> find(const GlobalPointer& primary) const;
  // As Heap::free, for a version of such a server. The addresses that other servers must be told of go to
  // `remote`, and to `dropped` the primaries whose own replicas elsewhere are of no use any more.
  void free(const GlobalPointer& primary, bool shallow, std::vector<GlobalPointer>& remote,
            std::vector<Address>& dropped);
  // What of that server nobody owns, to be freed.
  [[nodiscard]] std::vector<GlobalPointer> orphans(ServerId server) const;
  // Every version of that server: to be replicated again once its place was taken, or to be audited by it.
  [[nodiscard]] std::vector<Version> promoted(ServerId server) const;
  [[nodiscard]] Usage usage() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Blocks {  // of one version
    std::uint64_t extent_bytes = 0;  // of the primary
    GlobalPointer local;
  };
  using Place = protocol::ReplicaPlace<Blocks>;
  // An address without versions whose last notice is still worth knowing.
  struct Emptied {
    Clock::time_point at;
    std::uint64_t address = 0;
    std::uint64_t floor = 0;
  };
  // With the mutex held, as all below; blocks to be freed go to `freed`.
  void enter(const StagedReplica& staged, std::vector<GlobalPointer>& freed);
  [[nodiscard]] bool is_closed(const GlobalPointer& primary) const;
  void forget_notices();
  void confirm_children(const GlobalPointer& local);
  void reach(const GlobalPointer& local, std::unordered_set<std::uint64_t>& reached) const;
  [[nodiscard]] const Place::Version* look_up(const GlobalPointer& primary) const;
  [[nodiscard]] Usage usage_of(ServerId server) const;  // kNoServer: of all
  void free_blocks(const std::vector<GlobalPointer>& blocks) noexcept;

  heap::Heap& heap_;
  mutable std::mutex mutex_;  // protects what is below; never held while a block is freed or a peer waited for
  std::unordered_map<std::uint64_t, Place> index_;
  std::deque<Emptied> emptied_;  // oldest first
  std::unordered_map<ServerId, std::uint16_t> closed_;  // up to which incarnation
  std::unordered_set<ServerId> promoted_;
};

}  // namespace drust::server
