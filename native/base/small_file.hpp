// The text of a small file, as those below /proc and /sys, by system calls.
//
// Rejected: std::ifstream. In an extension built by g++ 13 (Ubuntu 24.04, Python 3.12) the heap found no memory on a
// machine with 131 GB free; the same streams in a library of their own read what is there. Why, we do not know.
#pragma once

#include <cerrno>
#include <fcntl.h>
#include <string>
#include <unistd.h>

namespace drust {

// Empty: it is not there, or cannot be read.
inline std::string text_of(const std::string& path) {
  std::string text;
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return text;
  char part[4096];
  for (;;) {
    const ssize_t count = ::read(file, part, sizeof part);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    text.append(part, static_cast<std::size_t>(count));
  }
  ::close(file);
  return text;
}

}  // namespace drust
