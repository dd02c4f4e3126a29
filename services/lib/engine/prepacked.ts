/**
 * Weights in the form that the CPU's kernels read. By default ONNX Runtime makes this form again for every session, in
 * private memory. Kept in a file it is mapped, so that the processes of a machine share the pages and load much faster.
 *
 *     DIR/GRAPH-FINGERPRINT-KEY/model.onnx, model.bin, key.json
 *
 * The form depends on the library's version and on the CPU, so both are in the key. A folder is renamed into place,
 * complete or not at all. If processes start together, the first one's folder stays.
 */
import { createHash } from 'node:crypto';
import { chmod, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { ServingError } from '../process/errors.ts';
import { makeFolder } from '../process/os-errors.ts';
import { RUNTIME_VERSION, runtime } from './ort-api.ts';
import { cpuInfo, type PrepackedCache, SessionSettings } from './ort-settings.ts';

interface PackKey {
  /** Version of ONNX Runtime. */
  readonly runtime: string;
  /** Platform and instruction sets of the CPU. */
  readonly cpu: string;
}

/** The content of key.json, which makes a folder complete. */
interface PackRecord extends PackKey {
  /** Sizes of the files, in bytes. */
  readonly files: Readonly<Record<string, number>>;
}

const FILES = ['model.onnx', 'model.bin'] as const;
/**
 * Smaller tensors stay in the graph's own file and are packed at every load. ONNX Runtime 1.30 aligns only larger ones
 * to page boundaries, while its 4- and 8-bit kernels expect packed matrices at aligned addresses and compute NaN
 * otherwise.
 */
const SMALLEST_SHARED_BYTES = 1 << 20;
const KERNEL_ALIGNMENT = 64;
/**
 * Matches an entry of the graph's file with the places of packed matrices: `prepacked_0`, a length,
 * `OPERATOR+HASH|offset;length;…`.
 */
const PACKED_PLACES = /prepacked_\d+[\s\S]{2,3}\w+\+\d+\|((?:\d+;\d+;\d+\|?)+)/g;
/** Making a folder takes seconds to minutes, so after an hour its maker is gone. */
const ABANDONED_AFTER_MS = 3_600_000;
const hash = (text: string) => createHash('sha256').update(text).digest('hex');

/**
 * Path of the prepacked form of `graph`, which is made now if it does not exist yet. If that is not possible, it warns
 * and returns `graph`, which computes the same with private weights.
 */
export async function prepackedGraph(graph: string, cache: PrepackedCache): Promise<string> {
  const { dir, fingerprint, log } = cache;
  const key: PackKey = { runtime: RUNTIME_VERSION, cpu: cpuFeatures() };
  const family = `${basename(dirname(graph))}-${fingerprint.slice(0, 16)}-`;
  const folder = join(dir, family + hash(JSON.stringify(key)).slice(0, 16));
  try {
    const fault = await faultOf(folder, key);
    if (fault !== undefined) {
      await makeFolder(dir);
      await removeAbandoned(folder);
      const foreign = await foreignFolders(dir, family, basename(folder));
      const startedMs = performance.now();
      const bytes = await make(graph, folder, key);
      const ms = Math.round(performance.now() - startedMs);
      log.info({ folder, bytes, ms, reason: fault, foreign }, 'weights prepacked for this CPU');
    }
    return join(folder, 'model.onnx');
  } catch (error) {
    log.warn({ dir, err: error }, 'cannot keep prepacked weights: this process does not share its weights with others');
    return graph;
  }
}

/** The reason why a folder is unusable; undefined for a good one. */
async function faultOf(folder: string, key: PackKey): Promise<string | undefined> {
  const text = await readFile(join(folder, 'key.json'), 'utf8').catch(() => undefined);
  if (text === undefined) return 'not there yet';
  const found = parse(text);
  if (found?.runtime !== key.runtime) return `made by ONNX Runtime ${found?.runtime}`;
  if (found.cpu !== key.cpu) return 'made for another CPU';
  for (const name of FILES) {
    const size = await stat(join(folder, name)).then(
      (file) => file.size,
      () => 0,
    );
    if (size !== found.files[name]) return `${name} has ${size} bytes, not ${found.files[name]}`;
  }
  return undefined;
}

function parse(text: string): PackRecord | undefined {
  try {
    return JSON.parse(text) as PackRecord;
  } catch {
    return undefined;
  }
}

/** Folders of the same graph that were made for another CPU or by another version of the library. */
async function foreignFolders(dir: string, family: string, own: string): Promise<string[]> {
  const names = await readdir(dir);
  return names.filter((name) => name.startsWith(family) && name !== own && !name.includes('.'));
}

/** Removes what processes left behind that were killed while they made `folder`: perhaps a gigabyte each. */
async function removeAbandoned(folder: string): Promise<void> {
  const names = await readdir(dirname(folder));
  for (const name of names.filter((other) => other.startsWith(`${basename(folder)}.`))) {
    const path = join(dirname(folder), name);
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
    if (Date.now() - mtimeMs > ABANDONED_AFTER_MS) await rm(path, { recursive: true, force: true });
  }
}

/** @returns bytes written. */
async function make(graph: string, folder: string, key: PackKey): Promise<number> {
  const temporary = await mkdtemp(`${folder}.`);
  try {
    await chmod(temporary, 0o755); // so that processes of other users can map it too
    // The form does not depend on the number of threads.
    using settings = new SessionSettings({ provider: 'cpu', threads: 1 });
    settings.writeGraphTo(join(temporary, FILES[0]));
    settings.set('session.save_external_prepacked_constant_initializers', '1');
    settings.set('session.optimized_model_external_initializers_file_name', FILES[1]);
    const smallest = String(SMALLEST_SHARED_BYTES);
    settings.set('session.optimized_model_external_initializers_min_size_in_bytes', smallest);
    runtime().api.releaseSession(await settings.open(graph));
    await assertAligned(join(temporary, FILES[0]));
    const sizes = await Promise.all(FILES.map(async (name) => (await stat(join(temporary, name))).size));
    const files = Object.fromEntries(FILES.map((name, i) => [name, sizes[i] as number]));
    await writeFile(join(temporary, 'key.json'), JSON.stringify({ ...key, files } satisfies PackRecord));
    await replace(folder, temporary, key);
    return sizes.reduce((a, b) => a + b, 0);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** @throws ServingError runtime_unsupported for a packed matrix at an offset where the kernels would misread it. */
async function assertAligned(graph: string): Promise<void> {
  const text = await readFile(graph, 'latin1');
  const entries = [...text.matchAll(PACKED_PLACES)];
  const offsets = entries.flatMap(([, places]) => places!.split('|').map((place) => Number.parseInt(place, 10)));
  const misaligned = offsets.find((offset) => offset % KERNEL_ALIGNMENT !== 0);
  if (misaligned === undefined && entries.length === text.split('prepacked_').length - 1) return;
  throw new ServingError(
    'runtime_unsupported',
    misaligned === undefined
      ? 'ONNX Runtime wrote the places of packed matrices in an unknown format: set --prepacked off'
      : `ONNX Runtime packed a matrix to offset ${misaligned}, which is not a multiple of ${KERNEL_ALIGNMENT}: set --prepacked off`,
  );
}

/**
 * Puts `made` in the place of a missing or unusable `folder`. A usable one that another process made meanwhile stays.
 */
async function replace(folder: string, made: string, key: PackKey): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await rename(made, folder);
      return;
    } catch (error) {
      if ((await faultOf(folder, key)) === undefined) return;
      if (attempt === 3) throw error;
      // Processes that have mapped its files keep them.
      const away = `${made}.old`;
      await rename(folder, away).catch(() => {});
      await rm(away, { recursive: true, force: true });
    }
  }
}

/** Platform and instruction sets as Linux lists them; on other systems the CPU's name. */
function cpuFeatures(): string {
  const listed = /^(?:flags|Features)\s*:\s*(.+)$/m.exec(cpuInfo())?.[1];
  return `${process.platform}-${process.arch} ${listed ?? cpus()[0]?.model ?? 'unknown'}`;
}
