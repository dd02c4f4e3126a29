/**
 * What the CPU computes in the check of a device (self-check.ts). It is computed once for each bundle and kept beside
 * the prepacked weights: the CPU needs the whole model in memory for it, and time at every start.
 *
 *     DIR/reference-FINGERPRINT-KEY.bin    SHA-256 of the key and of what follows; logits [positions, vocab], float32
 *
 * The file counts only if it is this user's alone, has its whole length and has its digest. It does not depend on the
 * CPU that made it, so that one made on another machine serves here too.
 */
import { createHash, randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { open, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeFolder } from '../process/os-errors.ts';
import { isOwnAlone } from '../process/private-files.ts';
import { RUNTIME_VERSION } from './ort-api.ts';
import type { PrepackedCache } from './ort-settings.ts';

const DIGEST_BYTES = 32;
/** Changes with the prompt, the order of the logits and the form of the file. */
const FORM = 2;

/** Name of the file that holds the reference of a bundle. */
export function referenceName(fingerprint: string): string {
  const key = createHash('sha256').update(keyOf(fingerprint)).digest('hex');
  return `reference-${fingerprint.slice(0, 16)}-${key.slice(0, 16)}.bin`;
}

const keyOf = (fingerprint: string) => `${FORM} ${fingerprint} ONNX Runtime ${RUNTIME_VERSION}`;

/**
 * The logits that are kept for a bundle, or else those that are computed now, which are kept for the next time. Where
 * they cannot be kept, this warns.
 * @param cache the folder of the bundle's prepacked weights; undefined to keep nothing.
 * @param count of the logits.
 * @throws what `compute` throws.
 */
export async function keptReference(
  cache: PrepackedCache | undefined,
  count: number,
  compute: () => Promise<Float32Array>,
): Promise<Float32Array> {
  if (cache === undefined) return compute();
  const { dir, fingerprint, log, files } = cache;
  const path = join(dir, referenceName(fingerprint));
  const found = await read(path, fingerprint, count);
  if (typeof found !== 'string') return found;
  const logits = await compute();
  try {
    await files.settled(); // the weights that it was computed with are what the bundle's digests say
    await makeFolder(dir);
    await write(path, fingerprint, logits);
    log.info({ path, reason: found }, 'what the CPU computes in the check of a device is kept');
  } catch (error) {
    log.warn({ path, err: error }, 'cannot keep what the CPU computes in the check of a device: it is computed again');
  }
  return logits;
}

/** @returns the logits, or the reason why the file does not count. */
async function read(path: string, fingerprint: string, count: number): Promise<Float32Array | string> {
  try {
    await using file = await open(path, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0));
    const entry = await file.stat();
    if (!isOwnAlone(entry)) return 'not this user’s alone';
    if (entry.size !== DIGEST_BYTES + 4 * count) return `${entry.size} bytes are not its length`;
    const bytes = await file.readFile();
    const content = bytes.subarray(DIGEST_BYTES);
    if (!digestOf(fingerprint, content).equals(bytes.subarray(0, DIGEST_BYTES))) return 'damaged, or of another bundle';
    return new Float32Array(Uint8Array.from(content).buffer);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'not there yet' : `cannot be read: ${error}`;
  }
}

/** The file appears complete or not at all. */
async function write(path: string, fingerprint: string, logits: Float32Array): Promise<void> {
  const temporary = `${path}.${randomUUID()}`;
  const content = new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength);
  try {
    await writeFile(temporary, Buffer.concat([digestOf(fingerprint, content), content]), { mode: 0o600, flag: 'wx' });
    await rename(temporary, path);
  } finally {
    await rm(temporary, { force: true });
  }
}

const digestOf = (fingerprint: string, content: Uint8Array) =>
  createHash('sha256').update(keyOf(fingerprint)).update('\n').update(content).digest();
