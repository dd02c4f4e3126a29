/**
 * Weights in the form that the CPU's kernels read. By default ONNX Runtime makes this form again for every session, in
 * private memory. Kept in a file it is mapped, so that the processes of a machine share the pages and load much faster.
 *
 *     DIR/GRAPH-FINGERPRINT-KEY/model.onnx, model.bin, key.json
 *
 * The key names all that the form depends on: the bundle, the library's version, the CPU. A folder is renamed into
 * place, complete or not at all. If processes start together, the first one's folder stays.
 *
 * These bytes are computed with instead of the bundle's, so they are held to the same: a folder is made only of files
 * that are as the manifest says, is used only if its own files have the digests of its key, and belongs to the user
 * that uses it alone.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { chmod, lstat, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { BundleFile } from '../model/bundle/bundle.ts';
import type { FileGuard } from '../model/bundle/integrity.ts';
import { ServingError } from '../process/errors.ts';
import { makeFolder } from '../process/os-errors.ts';
import { isOwnAlone } from '../process/private-files.ts';
import { alignWeights } from './aligned-weights.ts';
import { RUNTIME_VERSION, runtime } from './ort-api.ts';
import { cpuFeatures, type PrepackedCache, SessionSettings } from './ort-settings.ts';

interface PackKey {
  /** Fingerprint of the bundle, and which of its graphs this is. */
  readonly fingerprint: string;
  readonly graph: string;
  /** Version of ONNX Runtime. */
  readonly runtime: string;
  /** Platform and instruction sets of the CPU. */
  readonly cpu: string;
  /** The settings that decide what is packed, and how. */
  readonly settings: string;
  /** Each user has folders of their own; undefined where the system knows no users. */
  readonly user: number | undefined;
}

/** The content of key.json, which makes a folder complete. */
interface PackRecord extends PackKey {
  readonly files: readonly BundleFile[];
}

const FILES = ['model.onnx', 'model.bin'] as const;
/**
 * Tensors below a page stay in the graph's own file: each session has a copy of them. All others are mapped. With 1 MiB
 * here, as ONNX Runtime aligns weights only from there on, a session of 0.5B with 8-bit weights took 142 MiB of its own
 * instead of 15: its matrices of attention and its scales, and the former once more in their packed form.
 */
const SMALLEST_SHARED_BYTES = 4096;
/** Making a folder takes seconds to minutes, so after an hour its maker is gone. */
const ABANDONED_AFTER_MS = 3_600_000;
const hash = (text: string) => createHash('sha256').update(text).digest('hex');

/**
 * Path of the prepacked form of `graph`, which is made now if it does not exist yet. If that is not possible, it warns
 * and returns `graph`, which computes the same with private weights.
 */
export async function prepackedGraph(graph: string, cache: PrepackedCache): Promise<string> {
  const { dir, fingerprint, log, files } = cache;
  const key: PackKey = {
    fingerprint,
    graph: basename(dirname(graph)),
    runtime: RUNTIME_VERSION,
    cpu: cpuFeatures(),
    settings: `${SMALLEST_SHARED_BYTES}`,
    user: process.getuid?.(),
  };
  const family = `${key.graph}-${fingerprint.slice(0, 16)}-`;
  const folder = join(dir, family + hash(JSON.stringify(key)).slice(0, 16));
  try {
    const fault = await faultOf(folder, key, files);
    if (fault !== undefined) {
      await makeFolder(dir);
      await removeAbandoned(folder);
      const foreign = await foreignFolders(dir, family, basename(folder));
      const startedMs = performance.now();
      const bytes = await make(graph, folder, key, files);
      const ms = Math.round(performance.now() - startedMs);
      log.info({ folder, bytes, ms, reason: fault, foreign }, 'weights prepacked for this CPU');
    }
    return join(folder, 'model.onnx');
  } catch (error) {
    log.warn({ dir, err: error }, 'cannot keep prepacked weights: this process does not share its weights with others');
    return graph;
  }
}

/** The reason why a folder is unusable; undefined for a good one, whose files are looked after from then on. */
async function faultOf(folder: string, key: PackKey, guard: FileGuard): Promise<string | undefined> {
  const entry = await lstat(folder).catch(() => undefined);
  if (entry === undefined) return 'not there yet';
  if (!isOwnAlone(entry)) return 'not this user’s alone';
  const text = await readFile(join(folder, 'key.json'), 'utf8').catch(() => undefined);
  if (text === undefined) return 'not there yet';
  const { files, ...found } = parse(text) ?? {};
  if (found.runtime !== key.runtime) return `made by ONNX Runtime ${found.runtime}`;
  if (found.cpu !== key.cpu) return 'made for another CPU';
  if (JSON.stringify(found) !== JSON.stringify(key)) return 'made of another bundle, or in another way';
  if (FILES.some((name, i) => files?.[i]?.path !== name)) return 'key.json does not list its files';
  // Such a file is made again at the next start: only the process that has it mapped must end.
  return guard.verify(folder, files!, 'runtime_failed').then(
    () => undefined,
    (error: ServingError) => error.message,
  );
}

function parse(text: string): Partial<PackRecord> | undefined {
  try {
    return JSON.parse(text) as Partial<PackRecord>;
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

/**
 * @returns bytes written.
 * @throws ServingError of the guard if the graph's own files are not as they should be.
 */
async function make(graph: string, folder: string, key: PackKey, guard: FileGuard): Promise<number> {
  const temporary = await mkdtemp(`${folder}.`);
  try {
    // The form does not depend on the number of threads.
    using settings = new SessionSettings({ threads: 1 });
    settings.writeGraphTo(join(temporary, FILES[0]));
    settings.set('session.save_external_prepacked_constant_initializers', '1');
    settings.set('session.optimized_model_external_initializers_file_name', FILES[1]);
    const smallest = String(SMALLEST_SHARED_BYTES);
    settings.set('session.optimized_model_external_initializers_min_size_in_bytes', smallest);
    runtime().api.releaseSession(await settings.open(graph));
    const [model, weights] = FILES.map((name) => join(temporary, name)) as [string, string];
    await alignWeights(model, weights);
    const files = await Promise.all(FILES.map((name) => describe(temporary, name)));
    await writeFile(join(temporary, 'key.json'), JSON.stringify({ ...key, files } satisfies PackRecord));
    for (const name of [...FILES, 'key.json']) await chmod(join(temporary, name), 0o600);
    await guard.settled(); // what was packed is what the bundle's digests say
    await replace(folder, temporary, key, guard);
    const fault = await faultOf(folder, key, guard);
    if (fault !== undefined) throw new ServingError('path_unusable', `${folder}: ${fault}`);
    return files.reduce((sum, { bytes }) => sum + bytes, 0);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

async function describe(dir: string, path: string): Promise<BundleFile> {
  const digest = createHash('sha256');
  await pipeline(createReadStream(join(dir, path), { highWaterMark: 1 << 20 }), digest);
  return { path, bytes: (await stat(join(dir, path))).size, sha256: digest.digest('hex') };
}

/**
 * Puts `made` in the place of a missing or unusable `folder`. A usable one that another process made meanwhile stays.
 */
async function replace(folder: string, made: string, key: PackKey, guard: FileGuard): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await rename(made, folder);
      return;
    } catch (error) {
      if ((await faultOf(folder, key, guard)) === undefined) return;
      if (attempt === 3) throw error;
      // Processes that have mapped its files keep them.
      const away = `${made}.old`;
      await rename(folder, away).catch(() => {});
      await rm(away, { recursive: true, force: true });
    }
  }
}
