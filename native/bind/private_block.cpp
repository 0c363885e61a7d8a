#include "bind/private_block.hpp"

#include <sys/mman.h>
#include <unistd.h>

namespace drust::bind {

Result<PrivateBlock> PrivateBlock::map(std::size_t bytes) {
  const int file = memfd_create("drust-private", MFD_CLOEXEC);
  if (file < 0) return system_error("memfd_create");
  if (ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    Status failed = system_error("ftruncate");
    ::close(file);
    return failed;
  }
  void* writable = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  void* readable = writable == MAP_FAILED ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  if (readable == MAP_FAILED) {
    Status failed = system_error("mmap");
    if (writable != MAP_FAILED) munmap(writable, bytes);
    ::close(file);
    return failed;
  }
  ::close(file);  // the mappings keep the memory
  return PrivateBlock{static_cast<std::byte*>(readable), static_cast<std::byte*>(writable), bytes};
}

void PrivateBlock::unmap() noexcept {
  if (mapped_bytes == 0) return;
  munmap(readable, mapped_bytes);
  munmap(writable, mapped_bytes);
  mapped_bytes = 0;
}

}  // namespace drust::bind
