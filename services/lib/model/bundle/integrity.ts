/**
 * Whether the files of a bundle still hold what was exported: every byte is read and compared with the manifest's
 * SHA-256. Opening a bundle compares sizes alone, so that a worker starts before gigabytes have been read; a flipped
 * bit in a weight shows only here.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../process/errors.ts';
import type { Logger } from '../../process/log.ts';
import { reasonOf } from '../../process/os-errors.ts';
import { allFiles, type Bundle, fingerprintOf, readManifest } from './bundle.ts';

export interface VerifyProgress {
  /** The file that is being read, relative to the bundle. */
  readonly path: string;
  /** Bytes read so far, and bytes of all files. */
  readonly done: number;
  readonly total: number;
}

interface VerifyOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: VerifyProgress) => void;
  /** Leave nine tenths of the event loop's time to others. */
  readonly gentle?: boolean;
}

/** Bytes that are hashed at a time: 1 MiB takes 0.5 to 3 ms, by whether the CPU has instructions for SHA-256. */
const CHUNK_BYTES = 1024 * 1024;
const GENTLE_CHUNK_BYTES = 128 * 1024;
/** How many times as long as it worked a gentle verification rests. */
const REST = 9;

const invalid = (dir: string, what: string, cause?: unknown) =>
  new ServingError('bundle_invalid', `${dir}: ${what}`, { cause });

/**
 * Reads every file and compares it with the manifest.
 * @throws ServingError bundle_invalid, which names the first file that differs or cannot be read; the signal's reason.
 */
export async function verifyBundle(bundle: Bundle, options: VerifyOptions = {}): Promise<void> {
  const damage = await findDamage(bundle, options);
  if (damage) throw damage;
}

/**
 * Verifies a bundle beside other work, after a process has begun to serve it, and logs the outcome once. It never
 * rejects, and ends at once and without a word when `signal` is aborted.
 * @param onDamage told of a file that differs from the manifest: what this process computes cannot be trusted. Files
 *   that were removed or replaced by another export since they were loaded are not damage.
 */
export async function verifyInBackground(
  bundle: Bundle,
  signal: AbortSignal,
  log: Pick<Logger, 'info' | 'warn' | 'error'>,
  onDamage: (error: ServingError) => void,
): Promise<void> {
  const { dir, manifest } = bundle;
  const startedMs = performance.now();
  let damage: ServingError | undefined;
  try {
    damage = await findDamage(bundle, { signal, gentle: true });
  } catch (err) {
    if (!signal.aborted) log.warn({ err, bundle: dir }, 'the bundle could not be verified: its files cannot be read');
    return;
  }
  if (!damage) {
    const seconds = Math.round((performance.now() - startedMs) / 1000);
    log.info(
      { bundle: dir, fingerprint: manifest.fingerprint, seconds },
      'the bundle is verified: all files are intact',
    );
    return;
  }
  const now = await readManifest(dir).catch(() => undefined);
  if (signal.aborted) return;
  if (now?.fingerprint !== manifest.fingerprint) {
    log.warn({ bundle: dir }, 'the bundle could not be verified: it was replaced; this process serves the one before');
    return;
  }
  log.error({ err: damage, bundle: dir }, 'the bundle is damaged');
  onDamage(damage);
}

/** @throws ServingError bundle_invalid for a file that cannot be read; the signal's reason. */
async function findDamage(
  { dir, manifest }: Bundle,
  { signal, onProgress, gentle = false }: VerifyOptions,
): Promise<ServingError | undefined> {
  const files = allFiles(manifest);
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  for (const { path, sha256 } of files) {
    signal?.throwIfAborted();
    const hash = createHash('sha256');
    try {
      const highWaterMark = gentle ? GENTLE_CHUNK_BYTES : CHUNK_BYTES;
      for await (const chunk of createReadStream(join(dir, path), { highWaterMark, signal })) {
        const startedMs = performance.now();
        hash.update(chunk);
        done += chunk.length;
        onProgress?.({ path, done, total });
        if (gentle) await sleep(REST * (performance.now() - startedMs), undefined, { signal, ref: false });
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw invalid(dir, `${path} cannot be read: ${reasonOf(error)}`, error);
    }
    const found = hash.digest('hex');
    if (found !== sha256) {
      return invalid(dir, `${path} is damaged: it has SHA-256 ${found}, and the manifest says ${sha256}`);
    }
  }
  const fingerprint = fingerprintOf(files);
  if (fingerprint === manifest.fingerprint) return undefined;
  return invalid(dir, `its files have fingerprint ${fingerprint}, and the manifest says ${manifest.fingerprint}`);
}
