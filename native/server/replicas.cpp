#include "server/replicas.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace drust::server {
namespace {

constexpr std::size_t kVersionsMax = 2;

// The children a replica owns; those of a task's arguments that are only lent are left out.
template <class Visit>
void each_owned_child(const heap::Heap& heap, const GlobalPointer& local, const Visit& visit) {
  const Result<heap::Block> block = heap.partition().find(local.address, local.colour);
  if (!block.ok()) return;  // nobody else frees it
  for (const heap::ChildPointer& child : block.value().children()) {
    if (child.address != 0 && (child.flags & heap::ChildPointer::kBorrowed) == 0) visit(child.pointer());
  }
}

}  // namespace

Status Replicas::commit(std::vector<StagedReplica>& batch) {
  std::vector<GlobalPointer> freed;
  Status status;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const StagedReplica& staged : batch) {
      const ServerId server = staged.primary.address.server();
      if (promoted_.contains(server)) {
        status = Status(Code::server_lost, "server " + std::to_string(server) + " has been replaced");
      } else if (server == heap_.partition().server()) {
        status = Status(Code::bad_request, "a server keeps no replicas of its own blocks");
      }
    }
    if (status.ok()) {
      for (const StagedReplica& staged : batch) enter(staged, freed);
      batch.clear();
    }
  }
  if (!status.ok()) abandon(batch);
  free_blocks(freed);
  return status;
}

void Replicas::enter(const StagedReplica& staged, std::vector<GlobalPointer>& freed) {
  Versions& versions = index_[staged.primary.address.raw()];
  for (Version& version : versions) {
    if (version.primary.colour != staged.primary.colour) continue;
    // Two processes handed it out at once, or a lost answer was asked for again: the bytes are the same.
    version.stamp = std::max(version.stamp, staged.stamp);
    version.is_confirmed = version.is_confirmed || staged.is_confirmed;
    freed.push_back(staged.local);
    return;
  }
  versions.push_back({staged.primary, staged.local, staged.stamp, staged.is_confirmed});
  std::sort(versions.begin(), versions.end(),
            [](const Version& a, const Version& b) { return a.stamp < b.stamp; });
  if (versions.size() <= kVersionsMax) return;
  freed.push_back(versions.front().local);
  versions.erase(versions.begin());
}

void Replicas::abandon(std::vector<StagedReplica>& batch) noexcept {
  for (const StagedReplica& staged : std::exchange(batch, {})) static_cast<void>(heap_.free_shallow(staged.local));
}

void Replicas::free_blocks(const std::vector<GlobalPointer>& blocks) noexcept {
  for (const GlobalPointer& block : blocks) static_cast<void>(heap_.free_shallow(block));
}

void Replicas::drop_older(Address address, std::uint64_t stamp) {
  std::vector<GlobalPointer> freed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = index_.find(address.raw());
    if (found == index_.end()) return;
    Versions& versions = found->second;
    while (!versions.empty() && versions.front().stamp < stamp) {
      const Version gone = versions.front();
      versions.erase(versions.begin());
      if (gone.is_confirmed) confirm_children(gone);
      freed.push_back(gone.local);
    }
    if (versions.empty()) index_.erase(found);
  }
  free_blocks(freed);
}

void Replicas::confirm_children(const Version& version) {
  each_owned_child(heap_, version.local, [this](const GlobalPointer& child) {
    const auto found = index_.find(child.address.raw());
    if (found == index_.end()) return;
    for (Version& each : found->second) each.is_confirmed = each.is_confirmed || each.primary.colour == child.colour;
  });
}

void Replicas::confirm(Address address, Colour colour) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = index_.find(address.raw());
  if (found == index_.end()) return;
  for (Version& version : found->second) {
    if (version.primary.colour == colour) version.is_confirmed = true;
  }
}

Replicas::Usage Replicas::promote(ServerId server) {
  Usage usage;
  const std::lock_guard<std::mutex> lock(mutex_);
  promoted_.insert(server);
  for (const auto& [address, versions] : index_) {
    if (Address(address).server() != server) continue;
    for (const Version& version : versions) {
      ++usage.versions;
      usage.bytes += version.local.extent_bytes;
    }
  }
  return usage;
}

bool Replicas::is_promoted(ServerId server) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return promoted_.contains(server);
}

const Replicas::Version* Replicas::look_up(const GlobalPointer& primary) const {
  const auto found = index_.find(primary.address.raw());
  if (found == index_.end()) return nullptr;
  for (const Version& version : found->second) {
    if (version.primary.colour == primary.colour) return &version;
  }
  return nullptr;
}

Result<GlobalPointer> Replicas::find(const GlobalPointer& primary) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!promoted_.contains(primary.address.server())) return Status(Code::not_found, "no block there");
  const Version* version = look_up(primary);
  if (version == nullptr) {
    return Status(Code::not_found, "server " + std::to_string(primary.address.server()) +
                                       " was lost before that version had left it");
  }
  return version->local;
}

void Replicas::free(const GlobalPointer& primary, bool shallow, std::vector<GlobalPointer>& remote,
                    std::vector<Address>& dropped) {
  std::vector<GlobalPointer> open{primary};
  std::vector<GlobalPointer> freed;
  while (!open.empty()) {
    const GlobalPointer next = open.back();
    open.pop_back();
    GlobalPointer local;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = index_.find(next.address.raw());
      if (!promoted_.contains(next.address.server()) || found == index_.end()) continue;
      Versions& versions = found->second;
      const auto at = std::find_if(versions.begin(), versions.end(), [&](const Version& version) {
        return version.primary.colour == next.colour;
      });
      if (at == versions.end()) continue;  // stale: the expected fate of a free that was sent twice
      local = at->local;
      if (shallow && at->is_confirmed) confirm_children(*at);
      // The other version, if there is one, is what nobody heard of, or what was before: it goes too. Not if it is
      // newer and somebody's: the address was used again after this free, which comes late.
      const auto is_anothers = [&, stamp = at->stamp](const Version& version) {
        return version.primary.colour != next.colour && version.is_confirmed && version.stamp > stamp;
      };
      for (const Version& version : versions) {
        if (version.primary.colour != next.colour && !is_anothers(version)) freed.push_back(version.local);
      }
      std::erase_if(versions, [&](const Version& version) { return !is_anothers(version); });
      if (versions.empty()) {
        index_.erase(found);
        dropped.push_back(next.address);
      }
    }
    if (!shallow) {
      each_owned_child(heap_, local, [&](const GlobalPointer& child) {
        const ServerId server = child.address.server();
        if (server == heap_.partition().server()) {
          static_cast<void>(heap_.free(child, remote));
        } else if (is_promoted(server)) {
          open.push_back(child);
        } else {
          remote.push_back(child);
        }
      });
    }
    freed.push_back(local);
  }
  free_blocks(freed);
}

void Replicas::reach(const Version& version, std::unordered_set<std::uint64_t>& reached) const {
  std::vector<Version> open{version};
  while (!open.empty()) {
    const Version next = open.back();
    open.pop_back();
    if (!reached.insert(next.local.address.raw()).second) continue;
    each_owned_child(heap_, next.local, [&](const GlobalPointer& child) {
      if (const Version* below = look_up(child)) open.push_back(*below);
    });
  }
}

std::vector<GlobalPointer> Replicas::orphans(ServerId server) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unordered_set<std::uint64_t> reached;
  for (const auto& [address, versions] : index_) {
    for (const Version& version : versions) {
      if (version.is_confirmed) reach(version, reached);
    }
  }
  std::vector<GlobalPointer> found;
  for (const auto& [address, versions] : index_) {
    if (Address(address).server() != server) continue;
    const bool is_needed = std::any_of(versions.begin(), versions.end(), [&](const Version& version) {
      return reached.contains(version.local.address.raw());
    });
    if (!is_needed) found.push_back(versions.back().primary);
  }
  return found;
}

std::vector<Replicas::Version> Replicas::promoted(ServerId server) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Version> all;
  for (const auto& [address, versions] : index_) {
    if (Address(address).server() == server) all.insert(all.end(), versions.begin(), versions.end());
  }
  return all;
}

Replicas::Usage Replicas::usage() const {
  Usage usage;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [address, versions] : index_) {
    usage.versions += versions.size();
    for (const Version& version : versions) usage.bytes += version.local.extent_bytes;
  }
  return usage;
}

}  // namespace drust::server
