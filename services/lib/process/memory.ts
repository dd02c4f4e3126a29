/** The memory of the machine, and bytes of memory as messages write them. */
import { totalmem } from 'node:os';

/** Bytes of a gibibyte. */
export const GIB = 2 ** 30;

/** Bytes as `1.5 GiB`, or as `1.5 MiB` where they are less than a tenth of a gibibyte. */
export const sizeText = (bytes: number) =>
  bytes < GIB / 10 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${(bytes / GIB).toFixed(1)} GiB`;

/** Bytes of memory that this process may have: the machine's, or what its container is limited to. */
export const machineMemory = () => Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
