// How native code reports failure: Status and Result<T>, both [[nodiscard]]; nothing throws below bind/.
//
// A Code says who must act; `detail` is a sentence for a person. std::expected is C++23, so Result is a small variant.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

namespace drust {

enum class Code : std::uint8_t {
  ok,
  out_of_memory,     // the quota or the machine has no room
  stale,             // the block no longer has the colour that was asked for
  not_found,         // no live block there, or nothing of that name
  bad_request,       // malformed or out of bounds: the peer or the caller is wrong
  unauthenticated,   // the token did not match
  version_mismatch,  // the peer speaks another protocol version
  server_lost,       // connection refused, reset, or silent for too long
  worker_lost,       // the process that ran the task is gone
  timed_out,         // the caller's own time limit
  full,              // a bounded table has no room
  closed,            // this runtime has been shut down
  interrupted,       // a signal arrived: the caller should look at it and may call again
  system,            // a system call failed; detail has errno's text
};

class [[nodiscard]] Status {
 public:
  Status() noexcept = default;
  Status(Code code, std::string detail) : code_(code), detail_(std::move(detail)) {}
  [[nodiscard]] bool ok() const noexcept { return code_ == Code::ok; }
  [[nodiscard]] Code code() const noexcept { return code_; }
  [[nodiscard]] const std::string& detail() const noexcept { return detail_; }

 private:
  Code code_ = Code::ok;
  std::string detail_;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}           // NOLINT: implicit by design
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {}    // NOLINT: implicit by design
  [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
  [[nodiscard]] T& value() noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] const T& value() const noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] const Status& status() const noexcept { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, Status> state_;
};

// errno's text behind the name of the call that failed.
[[nodiscard]] Status system_error(const char* call);

}  // namespace drust
