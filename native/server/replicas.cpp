#include "server/replicas.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "base/limits.hpp"

namespace drust::server {
namespace {

constexpr std::uint16_t kEveryIncarnation = 0xffff;

constexpr std::uint16_t incarnation_of(Colour colour) noexcept {
  return static_cast<std::uint16_t>(colour >> (64 - kIncarnationBits));
}

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
      if (is_closed(staged.primary)) {
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

bool Replicas::is_closed(const GlobalPointer& primary) const {
  const auto found = closed_.find(primary.address.server());
  return found != closed_.end() && incarnation_of(primary.colour) <= found->second;
}

void Replicas::enter(const StagedReplica& staged, std::vector<GlobalPointer>& freed) {
  Place& place = index_[staged.primary.address.raw()];
  const Place::Gone gone = place.enter({staged.primary.colour,
                                        staged.stamp,
                                        staged.is_confirmed,
                                        {staged.primary.extent_bytes, staged.local}});
  for (const Place::Version& version : gone) freed.push_back(version.held.local);
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
    forget_notices();
    Place& place = index_[address.raw()];
    if (!place.is_empty() && is_closed({address, place.versions[0].colour, 0})) return;
    const Place::Gone gone = place.drop_older(stamp);
    for (const Place::Version& version : gone) {
      if (version.is_confirmed) confirm_children(version.held.local);
      freed.push_back(version.held.local);
    }
    if (place.is_empty()) emptied_.push_back({Clock::now(), address.raw(), place.floor});
  }
  free_blocks(freed);
}

void Replicas::forget_notices() {
  const auto oldest = Clock::now() - std::chrono::milliseconds(kNoticesKeptMs);
  while (!emptied_.empty() && emptied_.front().at < oldest) {
    const Emptied& last = emptied_.front();
    const auto found = index_.find(last.address);
    if (found != index_.end() && found->second.is_empty() && found->second.floor == last.floor) index_.erase(found);
    emptied_.pop_front();
  }
}

void Replicas::confirm_children(const GlobalPointer& local) {
  each_owned_child(heap_, local, [this](const GlobalPointer& child) {
    if (const auto found = index_.find(child.address.raw()); found != index_.end()) found->second.confirm(child.colour);
  });
}

void Replicas::confirm(Address address, Colour colour) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = index_.find(address.raw()); found != index_.end()) found->second.confirm(colour);
}

Replicas::Usage Replicas::close(ServerId server, std::uint16_t incarnation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::uint16_t& closed = closed_[server];
  closed = std::max(closed, incarnation);
  return usage_of(server);
}

Replicas::Usage Replicas::promote(ServerId server) {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_[server] = kEveryIncarnation;
  promoted_.insert(server);
  return usage_of(server);
}

bool Replicas::is_promoted(ServerId server) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return promoted_.contains(server);
}

const Replicas::Place::Version* Replicas::look_up(const GlobalPointer& primary) const {
  const auto found = index_.find(primary.address.raw());
  return found == index_.end() ? nullptr : found->second.find(primary.colour);
}

Result<GlobalPointer> Replicas::find(const GlobalPointer& primary) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!promoted_.contains(primary.address.server())) return Status(Code::not_found, "no block there");
  const Place::Version* version = look_up(primary);
  if (version == nullptr) {
    return Status(Code::not_found, "server " + std::to_string(primary.address.server()) +
                                       " was lost, and no replica of that version was kept.");
  }
  return version->held.local;
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
      const Place::Version* version = found->second.find(next.colour);
      if (version == nullptr) continue;  // stale: the expected fate of a free that was sent twice
      local = version->held.local;
      if (shallow && version->is_confirmed) confirm_children(local);
      for (const Place::Version& gone : found->second.take_free(next.colour)) {
        if (gone.colour != next.colour) freed.push_back(gone.held.local);
      }
      if (found->second.is_empty()) {
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

void Replicas::reach(const GlobalPointer& local, std::unordered_set<std::uint64_t>& reached) const {
  std::vector<GlobalPointer> open{local};
  while (!open.empty()) {
    const GlobalPointer next = open.back();
    open.pop_back();
    if (!reached.insert(next.address.raw()).second) continue;
    each_owned_child(heap_, next, [&](const GlobalPointer& child) {
      if (const Place::Version* below = look_up(child)) open.push_back(below->held.local);
    });
  }
}

std::vector<GlobalPointer> Replicas::orphans(ServerId server) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unordered_set<std::uint64_t> reached;
  for (const auto& [address, place] : index_) {
    for (const Place::Version& version : place) {
      if (version.is_confirmed) reach(version.held.local, reached);
    }
  }
  std::vector<GlobalPointer> found;
  for (const auto& [address, place] : index_) {
    if (Address(address).server() != server || place.is_empty()) continue;
    const bool is_needed = std::any_of(place.begin(), place.end(), [&](const Place::Version& version) {
      return reached.contains(version.held.local.address.raw());
    });
    if (is_needed) continue;
    const Place::Version& newest = place.versions[place.count() - 1];
    found.push_back({Address(address), newest.colour, newest.held.extent_bytes});
  }
  return found;
}

std::vector<Replicas::Version> Replicas::promoted(ServerId server) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Version> all;
  for (const auto& [address, place] : index_) {
    if (Address(address).server() != server) continue;
    for (const Place::Version& version : place) {
      const GlobalPointer primary{Address(address), version.colour, version.held.extent_bytes};
      all.push_back({primary, version.held.local, version.stamp, version.is_confirmed});
    }
  }
  return all;
}

Replicas::Usage Replicas::usage_of(ServerId server) const {
  Usage usage;
  for (const auto& [address, place] : index_) {
    if (server != kNoServer && Address(address).server() != server) continue;
    usage.versions += place.count();
    for (const Place::Version& version : place) usage.bytes += version.held.local.extent_bytes;
  }
  return usage;
}

Replicas::Usage Replicas::usage() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return usage_of(kNoServer);
}

}  // namespace drust::server
