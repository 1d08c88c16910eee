/* What the files of vmm/pci share with one another and nobody else. */
#ifndef VMM_PCI_PCI_PRIV_H
#define VMM_PCI_PCI_PRIV_H

#include "vmm/pci/pci.h"

#include <string.h>

struct pci_host {
  struct vmm *vmm;
  struct pci_dev *slot[PCI_SLOTS];
  struct pci_dev bridge;        /* slot 0 */
  uint32_t address;             /* CONFIG_ADDRESS, port 0xcf8 */
  uint64_t mmio_next;           /* first free address of the memory window */
  uint32_t io_next;             /* first free port of the I/O window */
  pthread_mutex_t intx_lock;    /* leaf: guards gsi_users and every dev->intx_* below it */
  uint32_t gsi_users[PCI_PINS]; /* per GSI: the slots that assert it */
};

/* config.c: fields are little-endian in config space. */
static inline uint16_t pci_get16(const uint8_t *p) {
  uint16_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline uint32_t pci_get32(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void pci_set16(uint8_t *p, uint16_t v) {
  memcpy(p, &v, sizeof v);
}
static inline void pci_set32(uint8_t *p, uint32_t v) {
  memcpy(p, &v, sizeof v);
}
void pci_dev_config_read(struct pci_dev *dev, unsigned offset, void *data, unsigned len);
void pci_dev_config_write(struct pci_dev *dev, unsigned offset, const void *data, unsigned len);
/* Config space as after power-on; BARs, MSI-X and INTx follow it. */
void pci_dev_config_reset(struct pci_dev *dev);

/* bar.c */
int pci_bars_assign(struct pci_host *host, struct pci_dev *dev);
void pci_bars_unmap(struct pci_dev *dev);
/* Maps and unmaps all BARs of the bus as COMMAND and the BAR registers now say. */
void pci_bars_update(struct pci_host *host);

/* intx.c */
/* COMMAND or MSI-X changed.  vmm->lock is held. */
void pci_intx_update(struct pci_dev *dev);
void pci_intx_refresh_status(struct pci_dev *dev);

/* msix.c */
void msix_control_changed(struct pci_dev *dev);
void msix_access(struct pci_dev *dev, uint64_t offset, void *data, unsigned len, bool write);
void msix_reset(struct pci_dev *dev);
void msix_free(struct pci_dev *dev);

#endif
