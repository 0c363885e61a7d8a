// The rules of replication as pure functions: which values are kept on a backup, and which of their versions.
//
// Purpose. What a backup does with a version, a notice, a confirmation and a free is decided here, once: the
// backup (server/replicas.cpp) and the state explorer (test/model/replica_model.hpp) run the same functions.
//
// Idea. A place is what the backup knows of one address of the primary: at most two versions, because the one
// that was written in place arrives before its owner hears of it, and a *floor*, the stamp of the newest notice.
// Stamps are drawn on the primary and order what its processes say, in whatever order it comes:
//
//     enter(v)        a version at or below the floor has been freed already: it came too late. Of three, the
//                     oldest goes
//     drop_older(s)   what is older than the notice goes, and the floor rises to it
//     take_free(c)    version c goes, with the other one, unless that is newer and somebody's: then the address
//                     was used again after this free
//
// Rejected: a floor for every address for ever (a word for each that was ever freed); none (a version that its
// dead sender had put on the wire is kept for ever when it comes after its block's free). How long the backup
// keeps the floor of an empty place is its business, not the rule's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace drust::protocol {

// A value follows its session's setting, unless its pointer says that it is an exception.
[[nodiscard]] constexpr bool is_replicated(bool session_replicates, bool is_excepted) noexcept {
  return session_replicates != is_excepted;
}

// `Held` is what the caller keeps for a version; the rules hand it back when the version goes.
template <class Held>
struct ReplicaVersion {
  std::uint64_t colour = 0;  // 0: none
  std::uint64_t stamp = 0;
  bool is_confirmed = false;
  Held held = {};
};

// The versions that a step gives up, at most all there were and the new one.
template <class Held>
struct ReplicasGone {
  std::array<ReplicaVersion<Held>, 3> versions = {};
  std::size_t count = 0;
  void add(const ReplicaVersion<Held>& version) { versions[count++] = version; }
  [[nodiscard]] auto begin() const noexcept { return versions.begin(); }
  [[nodiscard]] auto end() const noexcept { return versions.begin() + static_cast<std::ptrdiff_t>(count); }
};

template <class Held>
struct ReplicaPlace {
  using Version = ReplicaVersion<Held>;
  using Gone = ReplicasGone<Held>;

  std::array<Version, 2> versions = {};  // oldest first, no gap before one
  std::uint64_t floor = 0;

  [[nodiscard]] bool is_empty() const noexcept { return versions[0].colour == 0; }
  [[nodiscard]] std::size_t count() const noexcept {
    return (versions[0].colour != 0 ? 1U : 0U) + (versions[1].colour != 0 ? 1U : 0U);
  }
  [[nodiscard]] auto begin() const noexcept { return versions.begin(); }
  [[nodiscard]] auto end() const noexcept { return versions.begin() + static_cast<std::ptrdiff_t>(count()); }
  [[nodiscard]] const Version* find(std::uint64_t colour) const noexcept {
    for (const Version& version : *this) {
      if (version.colour == colour) return &version;
    }
    return nullptr;
  }

  Gone enter(const Version& fresh) {
    Gone gone;
    if (fresh.stamp <= floor) {
      gone.add(fresh);
      return gone;
    }
    for (Version& version : versions) {
      if (version.colour != fresh.colour) continue;
      // Two processes handed it out at once, or a lost answer was asked for again: the bytes are the same.
      if (version.stamp < fresh.stamp) version.stamp = fresh.stamp;
      version.is_confirmed = version.is_confirmed || fresh.is_confirmed;
      gone.add(fresh);
      restore_order();
      return gone;
    }
    Version& second = versions[1];
    if (second.colour == 0) {
      (is_empty() ? versions[0] : second) = fresh;
    } else if (fresh.stamp < versions[0].stamp) {
      gone.add(fresh);
    } else {
      gone.add(versions[0]);
      versions[0] = fresh;
    }
    restore_order();
    return gone;
  }

  Gone drop_older(std::uint64_t stamp) {
    if (floor < stamp) floor = stamp;
    return drop_if([stamp](const Version& version) { return version.stamp < stamp; });
  }

  // Nothing goes if that version is not here: the expected fate of a free that was sent twice.
  Gone take_free(std::uint64_t colour) {
    const Version* freed = find(colour);
    if (freed == nullptr) return {};
    const std::uint64_t stamp = freed->stamp;
    return drop_if([&](const Version& version) {
      return version.colour == colour || !version.is_confirmed || version.stamp <= stamp;
    });
  }

  void confirm(std::uint64_t colour) noexcept {
    for (Version& version : versions) {
      if (version.colour != 0 && version.colour == colour) version.is_confirmed = true;
    }
  }

 private:
  template <class Condition>
  Gone drop_if(const Condition& goes) {
    Gone gone;
    for (Version& version : versions) {
      if (version.colour == 0 || !goes(version)) continue;
      gone.add(version);
      version = {};
    }
    restore_order();
    return gone;
  }

  void restore_order() noexcept {
    const bool is_gap = versions[0].colour == 0;
    const bool is_later = versions[1].colour != 0 && versions[1].stamp < versions[0].stamp;
    if (is_gap || is_later) std::swap(versions[0], versions[1]);
  }
};

}  // namespace drust::protocol
