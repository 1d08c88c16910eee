/* Every way to open /dev/kvm, and what those ways do with other files. */
#include <linux/openat2.h>
#include <sys/syscall.h>
#include "client.h"

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dirfd, const char *path, int flags);
int __openat64_2(int dirfd, const char *path, int flags);

static void is_kvm(int fd) {
  CHECK(fd >= 0);
  CHECK(IS_KVM(fd));
  CHECK(close(fd) == 0);
  CHECK_ERRNO(fcntl(fd, F_GETFD), EBADF);
  CHECK_ERRNO(ioctl(fd, KVM_GET_API_VERSION, 0), EBADF);
}

static void by_function(void) {
  int dev = open("/dev", O_RDONLY | O_DIRECTORY);
  is_kvm(open("/dev/kvm", O_RDWR));
  is_kvm(open("/dev/kvm", O_RDONLY));
  is_kvm(open("/dev/kvm", O_RDWR | O_CREAT, 0600));
  is_kvm(open64("/dev/kvm", O_RDWR));
  is_kvm(openat(AT_FDCWD, "/dev/kvm", O_RDWR));
  is_kvm(openat64(AT_FDCWD, "/dev/kvm", O_RDWR));
  is_kvm(openat(dev, "kvm", O_RDWR));
  is_kvm(openat(dev, "../dev/kvm", O_RDWR));
  is_kvm(creat("/dev/kvm", 0600));
  is_kvm(__open_2("/dev/kvm", O_RDWR));
  is_kvm(__open64_2("/dev/kvm", O_RDWR));
  is_kvm(__openat_2(dev, "kvm", O_RDWR));
  is_kvm(__openat64_2(dev, "kvm", O_RDWR));
  CHECK(close(dev) == 0);
}

static void by_number(void) {
  struct open_how how = {.flags = O_RDWR};
  is_kvm((int)syscall(SYS_open, "/dev/kvm", O_RDWR));
  is_kvm((int)syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR));
  is_kvm((int)syscall(SYS_openat2, AT_FDCWD, "/dev/kvm", &how, sizeof(how)));
  int fd = open_kvm();
  CHECK(syscall(SYS_ioctl, fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION);
  int copy = (int)syscall(SYS_dup, fd);
  CHECK(IS_KVM(copy));
  CHECK(syscall(SYS_close, fd) == 0);
  CHECK(syscall(SYS_close, copy) == 0);
  CHECK_ERRNO(syscall(SYS_close, copy), EBADF);
  CHECK(syscall(SYS_getpid) == getpid());
  CHECK_ERRNO(syscall(SYS_openat, AT_FDCWD, "/nonexistent", O_RDONLY), ENOENT);
}

static void by_path(void) {
  is_kvm(open("//dev/./kvm", O_RDWR));
  is_kvm(open("/proc/self/root/dev/kvm", O_RDWR));
  CHECK(chdir("/dev") == 0);
  is_kvm(open("kvm", O_RDWR));
  is_kvm(open("./kvm", O_RDWR));
  CHECK(chdir("/") == 0);
  is_kvm(open("dev/kvm", O_RDWR));
  CHECK_ERRNO(open("/tmp/no/such/kvm", O_RDWR), ENOENT);
}

/* A link of another name is the kernel's to follow; what it leads to is taken over at the first request. */
static void by_link(void) {
  char link[] = "/tmp/uvirt-link-XXXXXX";
  CHECK(mkdtemp(link));
  char path[64];
  snprintf(path, sizeof(path), "%s/virt", link);
  CHECK(symlink("/proc/self/fd/77", path) == 0);
  int fd = open_kvm();
  CHECK(dup2(fd, 77) == 77);
  int again = open(path, O_RDWR);
  CHECK(again >= 0);
  CHECK(IS_KVM(again));
  int vm = ioctl(again, KVM_CREATE_VM, 0);
  CHECK(vm >= 0);
  CHECK(unlink(path) == 0 && rmdir(link) == 0);
  close(fd), close(77), close(again), close(vm);
}

static void flags(void) {
  int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
  close(fd);
  fd = open("/dev/kvm", O_RDWR);
  CHECK(fcntl(fd, F_GETFD) == 0);
  int vm = ioctl(fd, KVM_CREATE_VM, 0);
  CHECK(fcntl(vm, F_GETFD) == FD_CLOEXEC);
  close(vm), close(fd);
  CHECK_ERRNO(open("/dev/kvm", O_RDWR | O_DIRECTORY), ENOTDIR);
  CHECK_ERRNO(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
}

/* The numbers are those that the kernel's KVM would give: the lowest free ones. */
static void numbers(void) {
  int kvm = open_kvm();
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  int stats = ioctl(vm, KVM_GET_STATS_FD, 0);
  int next = open("/dev/null", O_RDONLY);
  CHECK(vm == kvm + 1 && vcpu == kvm + 2 && stats == kvm + 3 && next == kvm + 4);
  close(next), close(stats), close(vcpu), close(vm), close(kvm);
}

static void streams(void) {
  FILE *f = fopen("/dev/kvm", "r+");
  CHECK(f && IS_KVM(fileno(f)));
  int fd = fileno(f);
  CHECK(fclose(f) == 0);
  CHECK(open("/dev/zero", O_RDONLY) == fd); /* the number's next owner is what it is */
  char byte = 1;
  CHECK(read(fd, &byte, 1) == 1 && byte == 0);
  CHECK_ERRNO(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY);
  close(fd);
  f = fopen64("/dev/kvm", "re");
  CHECK(f && IS_KVM(fileno(f)) && fcntl(fileno(f), F_GETFD) == FD_CLOEXEC);
  fclose(f);
  f = fopen("/proc/self/status", "r");
  CHECK(f && fgetc(f) == 'N');
  fclose(f);
  CHECK(!fopen("/dev/kvm", "z") && errno == EINVAL);
}

/* Requests of KVM's type on something else are the kernel's business. */
static void others(void) {
  int fd = open("/dev/null", O_RDWR);
  CHECK_ERRNO(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY);
  CHECK_ERRNO(ioctl(-1, KVM_GET_API_VERSION, 0), EBADF);
  close(fd);
  fd = memfd_create("kvmless", 0);
  CHECK_ERRNO(ioctl(fd, KVM_GET_API_VERSION, 0), ENOTTY);
  close(fd);
  const char *volatile no_path = NULL;
  CHECK_ERRNO(open(no_path, O_RDWR), EFAULT);
}

int main(void) {
  by_function();
  by_number();
  by_path();
  by_link();
  flags();
  numbers();
  streams();
  others();
  return 0;
}
