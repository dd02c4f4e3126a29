/**
 * The repositories that a data set is made of. A source is an archive (tar, tar.gz, tgz, zip), a parquet file of The
 * Stack, a folder with a `.git` in it, which is one repository, or a folder of these and of folders, each of which is
 * one repository.
 */
import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { readUpload, type UploadFormat } from '../../services/indexer/archive.ts';
import type { Source } from '../../services/indexer/selection.ts';
import { treeSources } from '../../services/indexer/sources.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';

/** A repository that is open. */
export interface OpenRepository {
  /** In the order of their UTF-16 units. */
  readonly paths: readonly string[];
  read(path: string): Promise<Source>;
  close(): Promise<void>;
}

export interface Repository {
  readonly name: string;
  /** @throws ServingError where it cannot be read; the signal's reason. */
  open(signal: AbortSignal): Promise<OpenRepository>;
}

interface Limits {
  /** Larger files are left out, in bytes. */
  readonly maxFileBytes: number;
  /** The most bytes that an archive is unpacked to. */
  readonly maxUnpackedBytes: number;
}

export interface FoundSources {
  readonly repositories: readonly Repository[];
  readonly parquet: readonly string[];
}

const ARCHIVES: readonly (readonly [RegExp, UploadFormat])[] = [
  [/\.(?:tar\.gz|tgz)$/i, 'tar.gz'],
  [/\.tar$/i, 'tar'],
  [/\.zip$/i, 'zip'],
];
const MAX_ENTRIES = 1_000_000;
const archiveFormat = (path: string) => ARCHIVES.find(([ending]) => ending.test(path));
const isParquet = (path: string) => /\.parquet$/i.test(path);

/** @throws ServingError path_unusable, config_invalid. */
export async function findSources(paths: readonly string[], limits: Limits): Promise<FoundSources> {
  const repositories: Repository[] = [];
  const parquet: string[] = [];
  const take = (path: string, isFolder: boolean): boolean => {
    const archive = archiveFormat(path);
    if (isFolder) repositories.push(folder(path, limits));
    else if (archive) repositories.push(packed(path, archive[0], archive[1], limits));
    else if (isParquet(path)) parquet.push(path);
    else return false;
    return true;
  };
  for (const path of paths) {
    const entries = await atPath(path, async () =>
      (await stat(path)).isDirectory() ? readdir(path, { withFileTypes: true }) : undefined,
    );
    const isOne = entries === undefined || entries.some(({ name }) => name === '.git');
    const taken = isOne
      ? take(path, entries !== undefined)
      : entries
          .filter(({ name }) => !name.startsWith('.') && name !== '__pycache__')
          .sort((a, b) => (a.name < b.name ? -1 : 1))
          .map((entry) => take(join(path, entry.name), entry.isDirectory()))
          .includes(true);
    if (!taken) {
      throw new ServingError(
        'config_invalid',
        `${path} holds no repositories: name folders of repositories, archives (.tar, .tar.gz, .tgz, .zip) or .parquet files`,
      );
    }
  }
  return { repositories, parquet };
}

function folder(dir: string, { maxFileBytes }: Limits): Repository {
  return {
    name: basename(resolve(dir)),
    open: async () => {
      const { paths, read } = await treeSources(dir, { maxFileBytes });
      return { paths, read, close: async () => {} };
    },
  };
}

function packed(file: string, ending: RegExp, format: UploadFormat, limits: Limits): Repository {
  return {
    name: basename(file).replace(ending, ''),
    open: (signal) =>
      atPath(file, () => {
        const { maxFileBytes, maxUnpackedBytes } = limits;
        const bounds = { maxUploadBytes: maxUnpackedBytes, maxRepoBytes: maxUnpackedBytes, maxRepoFiles: MAX_ENTRIES };
        const body = { format, strip: 0, bytes: createReadStream(file) };
        return readUpload(body, { maxFileBytes, ...bounds }, signal);
      }),
  };
}
