#include "base/status.hpp"

#include <cerrno>
#include <system_error>

namespace drust {

Status system_error(const char* call) {
  const int error = errno;
  return Status(Code::system, std::string(call) + ": " + std::generic_category().message(error));
}

}  // namespace drust
