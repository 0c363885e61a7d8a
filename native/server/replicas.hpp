// The backup side of replication: versions of other servers' blocks, kept here until their own server frees
// them, and served in its place once it is lost.
//
//     address of the primary -> at most two versions {colour, stamp, block of this partition}
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
// comes.
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

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/address.hpp"
#include "base/status.hpp"
#include "heap/heap.hpp"

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

  // Enters all of a batch, or none: server_lost if this server has taken the place of the sender's, which by
  // that cannot change anything any more; bad_request if it names a block of this server. Empties `batch`.
  Status commit(std::vector<StagedReplica>& batch);
  // Frees staged blocks that were not committed.
  void abandon(std::vector<StagedReplica>& batch) noexcept;
  // Versions at this address with an older stamp go; the children of a confirmed one are confirmed from now
  // on, as whoever owns the next version of it owns them.
  void drop_older(Address address, std::uint64_t stamp);
  void confirm(Address address, Colour colour);

  // From now on this server answers for the addresses of that one. Returns what it has of it.
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
  using Versions = std::vector<Version>;  // oldest first
  // Both with the mutex held; blocks to be freed go to `freed`.
  void enter(const StagedReplica& staged, std::vector<GlobalPointer>& freed);
  void confirm_children(const Version& version);
  void reach(const Version& version, std::unordered_set<std::uint64_t>& reached) const;
  [[nodiscard]] const Version* look_up(const GlobalPointer& primary) const;
  void free_blocks(const std::vector<GlobalPointer>& blocks) noexcept;

  heap::Heap& heap_;
  mutable std::mutex mutex_;  // protects what is below; never held while a block is freed or a peer waited for
  std::unordered_map<std::uint64_t, Versions> index_;
  std::unordered_set<ServerId> promoted_;
};

}  // namespace drust::server
