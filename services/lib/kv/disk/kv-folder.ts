/**
 * The folder in which workers keep extents (extent.ts): which files there are, in the order in which they were used,
 * and how they come and go. Several workers may share a folder.
 *
 *     folder-id                                        a random name for the folder, by which gateways know it
 *     FORM-TENANT-HASH.kv                              an extent: digests of its form and of its tenant, and the hash
 *                                                      of its last block
 *     FORM-TENANT-HASH.kv.UUID.tmp                     one that is being written
 *
 * A file is written under another name and renamed when it is whole. Nothing is forced to the disk (fsync): what a
 * process has renamed outlives its death, also by SIGKILL. After a power failure a file may be damaged, and then its
 * checksum says so. A file that is not what its name says is deleted. Files with other names are left alone.
 *
 * The folder has a bound in bytes, over the extents of all forms and workers. Where it is reached, the tenant with the
 * most bytes loses the file that was used least recently: a tenant cannot drop the files of another one. The time of
 * its last use is the time of modification of a file.
 */
import { createHash, randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import {
  type FileHandle,
  link,
  lstat,
  open,
  readdir,
  readFile,
  rename,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import type { Logger } from '../../process/log.ts';
import { metrics } from '../../process/metrics.ts';
import { makeFolder, systemError } from '../../process/os-errors.ts';
import { isOwnAlone, narrowWithin } from '../../process/private-files.ts';
import { type ExtentForm, type ExtentHeader, HEADER_BYTES, readHeader } from './extent.ts';

const ID_FILE = 'folder-id';
const EXTENT_NAME = /^([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{64})\.kv$/;
const TEMPORARY_NAME = /^[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{64}\.kv\.[0-9a-f-]{36}\.tmp$/;
/** A file is written within milliseconds. One that is older than this, in ms, was left by a process that died. */
const STALE_MS = 60_000;
/** A file that could not be read is looked at again after this time, in ms: too many files may have been open. */
const UNUSABLE_MS = 60_000;
/** Most files of a folder: so many take some 100 MB of a worker's memory at most, and 3 s of its start. */
const MOST_FILES = 65_536;
/** Files that are looked at side by side. */
const LOOKS = 16;

/** An extent in the folder. */
export interface KvFile {
  readonly name: string;
  readonly tenant: string;
  readonly bytes: number;
  /** Undefined for extents of another form. */
  readonly header: ExtentHeader | undefined;
  /** When it was used last, as far as this worker knows, in ms since 1970. */
  usedMs: number;
}

/** The files of one tenant, that which was used least recently first. */
interface Owner {
  files: Map<string, KvFile>;
  bytes: number;
}

export class KvFolder {
  readonly dir: string;
  /** Names the folder among all: workers that say the same name share it. */
  readonly id: string;
  readonly form: ExtentForm;
  readonly #maxBytes: number;
  readonly #log: Logger;
  readonly #tenants = new Map<string, Owner>();
  /** Files of this form by the hashes of their blocks; of files with the same block, the newest. */
  readonly #byBlock = new Map<string, KvFile>();
  /** Names that cannot be read, or are no extents but folders, say; and when each is looked at again. */
  readonly #unusable = new Map<string, number>();
  #bytes = 0;
  #files = 0;
  #made = '';

  private constructor(dir: string, id: string, form: ExtentForm, maxBytes: number, log: Logger) {
    this.dir = dir;
    this.id = id;
    this.form = form;
    this.#maxBytes = maxBytes;
    this.#log = log;
  }

  /**
   * Opens a folder, which is made if it does not exist, and reads what is in it.
   * @throws ServingError path_unusable, or config_invalid where others could write to it: the values are computed with.
   */
  static async open(dir: string, form: ExtentForm, maxBytes: number, log: Logger): Promise<KvFolder> {
    if (maxBytes < form.fileBytes) {
      throw new ServingError(
        'config_invalid',
        `--kv-disk-bytes ${maxBytes} is less than the ${form.fileBytes} of one file: raise it`,
      );
    }
    try {
      await makeOwnFolder(dir);
      const folder = new KvFolder(dir, await readId(dir, randomUUID()), form, maxBytes, log);
      await folder.refresh();
      return folder;
    } catch (error) {
      throw systemError(error, `--kv-disk-dir ${dir}`) ?? error;
    }
  }

  /** Bytes of the extents in the folder, as far as this worker knows. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Tells a folder from one that was deleted, or emptied, and made again under the same name. */
  get made(): string {
    return this.#made;
  }

  /** The newest extent of this form with a block. @param hash of the block. */
  find(hash: string): KvFile | undefined {
    return this.#byBlock.get(hash);
  }

  /** Extents of this form that could be those of one prompt of at most `most` blocks, from its beginning on. */
  sample(most: number): KvFile[] {
    const byFirst = new Map<number, KvFile>();
    for (const file of this.#byBlock.values()) if (file.header) byFirst.set(file.header.first, file);
    const files: KvFile[] = [];
    for (let blocks = 0, next = byFirst.get(0); next?.header; next = byFirst.get(blocks)) {
      blocks += next.header.hashes.length;
      if (blocks > most) break;
      files.push(next);
    }
    return files;
  }

  /**
   * Reads which files have come and gone, deletes what is not what its name says, and keeps to the bound. A folder that
   * was deleted is made again.
   * @throws the error of the operating system; ServingError config_invalid where others can use the folder by now.
   */
  async refresh(): Promise<void> {
    const names = new Set(await this.#names());
    for (const { files } of this.#tenants.values()) {
      for (const file of files.values()) if (!names.has(file.name)) this.#forget(file);
    }
    for (const name of this.#unusable.keys()) if (!names.has(name)) this.#unusable.delete(name);
    const found: KvFile[] = [];
    const unknown = [...names].filter((name) => !this.#knows(name) && !this.#isUnusable(name));
    for (let from = 0; from < unknown.length; from += LOOKS) {
      const looked = await Promise.all(unknown.slice(from, from + LOOKS).map((name) => this.#look(name)));
      for (const each of looked) if (each) found.push(each);
    }
    found.sort((a, b) => a.usedMs - b.usedMs);
    for (const file of found) this.#note(file);
    await this.#makeRoom(0);
  }

  /** What is in the folder. Where it cannot be told, or others may have written it, nothing of it is known any more. */
  async #names(): Promise<string[]> {
    try {
      await assertOwnAlone(this.dir).catch((error) => {
        if (!isMissing(error)) throw error;
        return makeOwnFolder(this.dir);
      });
      const names = await readdir(this.dir);
      // Workers that share the folder have its name, so that whoever is first gives it back.
      if (!names.includes(ID_FILE)) await readId(this.dir, this.id);
      const { ino, mtimeMs } = await lstat(join(this.dir, ID_FILE)); // its name is written once
      this.#made = `${ino} ${mtimeMs}`;
      return names;
    } catch (error) {
      for (const { files } of this.#tenants.values()) for (const file of files.values()) this.#forget(file);
      throw error;
    }
  }

  /**
   * Writes an extent. Those that end within it are deleted: it has all that they have.
   * @param content the whole file.
   * @throws the error of the operating system; ServingError config_invalid where others can use the folder by now.
   */
  async write(header: ExtentHeader, tenant: string, content: Buffer): Promise<void> {
    const { digest } = this.form;
    const owner = createHash('sha256').update(tenant).digest('hex').slice(0, 16);
    const last = Buffer.from(header.hashes.at(-1)!, 'base64').toString('hex');
    const name = `${digest.slice(0, 16)}-${owner}-${last}.kv`;
    const file = { name, tenant: owner, bytes: content.length, header, usedMs: 0 };
    await assertOwnAlone(this.dir);
    await this.#makeRoom(content.length);
    const path = join(this.dir, file.name);
    await writeWhole(path, content).catch(async (error) => {
      if (!isFull(error) || this.#files === 0) throw error;
      // The disk is smaller than the bound, or others fill it: what was used last is worth more than what is old.
      await this.#makeRoom(content.length, this.#bytes);
      await writeWhole(path, content);
    });
    const contained = header.hashes.slice(0, -1).flatMap((hash) => {
      const older = this.#byBlock.get(hash);
      return older?.header?.hashes.at(-1) === hash ? [older] : [];
    });
    file.usedMs = Date.now(); // after the time that the file says
    this.#note(file);
    for (const older of contained) await this.#delete(older);
  }

  /**
   * Reads an extent. A file that is not what its name says is deleted.
   * @param into at least as long as the file.
   * @returns the whole file; undefined if it is gone or was deleted.
   * @throws the error of the operating system.
   */
  async read(file: KvFile, into: Buffer): Promise<Buffer | undefined> {
    const content = await readWhole(join(this.dir, file.name), into, file.bytes).catch((error) => {
      this.#forget(file); // gone, or on a disk that fails: it is found again if it can be read again
      if (isMissing(error)) return undefined;
      throw error;
    });
    if (content === undefined) return undefined;
    const header = content.length === file.bytes ? readHeader(this.form, content, file.bytes) : undefined;
    if (header?.hashes.at(-1) === file.header?.hashes.at(-1) && header?.crc32 === file.header?.crc32) return content;
    await this.discard(file);
    return undefined;
  }

  /** Files of one prompt were used, the first one of the prompt first: it is also the last one to go. */
  async use(files: readonly KvFile[]): Promise<void> {
    const nowMs = Date.now();
    for (const [i, file] of files.entries()) file.usedMs = nowMs - i;
    for (const file of files.toReversed()) if (this.#knows(file.name)) this.#note(file);
    for (const { name, usedMs } of files) {
      const at = usedMs / 1000;
      await utimes(join(this.dir, name), at, at).catch(() => {}); // it may be gone; the order is all that is lost
    }
  }

  /** Deletes a file whose values are not those that it should hold. */
  async discard(file: KvFile): Promise<void> {
    this.#forget(file);
    await this.#deleteDamaged(file.name);
  }

  #knows(name: string): boolean {
    const tenant = EXTENT_NAME.exec(name)?.[2];
    return tenant !== undefined && this.#tenants.get(tenant)?.files.has(name) === true;
  }

  #isUnusable(name: string): boolean {
    return performance.now() < (this.#unusable.get(name) ?? 0);
  }

  /** What a file is, by its name and its header. */
  async #look(name: string): Promise<KvFile | undefined> {
    const path = join(this.dir, name);
    const [, form, tenant, last] = EXTENT_NAME.exec(name) ?? [];
    try {
      if (TEMPORARY_NAME.test(name)) {
        const { mtimeMs } = await lstat(path);
        if (Math.abs(Date.now() - mtimeMs) > STALE_MS) await unlink(path);
        return undefined;
      }
      if (tenant === undefined || last === undefined) return undefined;
      const stats = await lstat(path);
      if (!stats.isFile() || !isOwnAlone(stats)) throw new Error('it is not a file for this user alone');
      const { size: bytes, mtimeMs: usedMs } = stats;
      if (form !== this.form.digest.slice(0, 16)) return { name, tenant, bytes, header: undefined, usedMs };
      const start = await readWhole(path, Buffer.allocUnsafe(HEADER_BYTES), HEADER_BYTES);
      const header = readHeader(this.form, start, bytes);
      if (header && hexOf(header.hashes.at(-1)!) === last) return { name, tenant, bytes, header, usedMs };
      await this.#deleteDamaged(name);
    } catch (error) {
      if (isMissing(error)) return undefined;
      const isSaid = this.#unusable.has(name);
      this.#unusable.set(name, performance.now() + UNUSABLE_MS);
      if (!isSaid) this.#log.warn({ err: error, file: name, dir: this.dir }, 'a file of KV on disk cannot be used');
    }
    return undefined;
  }

  async #deleteDamaged(name: string): Promise<void> {
    metrics.kvDiskDamaged.inc();
    this.#log.warn({ file: name, dir: this.dir }, 'a file of KV on disk is damaged: deleting it');
    await unlink(join(this.dir, name)).catch(() => {});
  }

  /** Adds a file, or makes it the one that was used last. */
  #note(file: KvFile): void {
    this.#forget(file);
    const owner = this.#tenants.get(file.tenant) ?? { files: new Map<string, KvFile>(), bytes: 0 };
    this.#tenants.set(file.tenant, owner);
    owner.files.set(file.name, file);
    owner.bytes += file.bytes;
    this.#count(file.bytes, 1);
    for (const hash of file.header?.hashes ?? []) this.#byBlock.set(hash, file);
  }

  #forget({ name, tenant }: KvFile): void {
    const owner = this.#tenants.get(tenant);
    const known = owner?.files.get(name);
    if (owner === undefined || known === undefined) return;
    owner.files.delete(name);
    owner.bytes -= known.bytes;
    if (owner.files.size === 0) this.#tenants.delete(tenant);
    this.#count(-known.bytes, -1);
    for (const hash of known.header?.hashes ?? []) {
      if (this.#byBlock.get(hash) === known) this.#byBlock.delete(hash);
    }
  }

  #count(bytes: number, files: number): void {
    this.#bytes += bytes;
    this.#files += files;
    metrics.kvDiskBytes.set(this.#bytes);
  }

  /** Deletes what has to go before so many more bytes come. @param maxBytes the most that there may be with them. */
  async #makeRoom(bytes: number, maxBytes = this.#maxBytes): Promise<void> {
    const more = bytes > 0 ? 1 : 0;
    while (this.#files > 0 && (this.#bytes + bytes > maxBytes || this.#files + more > MOST_FILES)) {
      const owners = [...this.#tenants.values()];
      const most = owners.reduce((a, b) => (b.bytes > a.bytes ? b : a));
      const oldest = await this.#oldestOf(most);
      if (oldest) await this.#delete(oldest);
    }
  }

  /**
   * The file of a tenant that nobody has used for longest. Other workers may have used some since this one did: it
   * looks at the oldest ones, at twice as many each time, until the first of them is what it is known to be.
   */
  async #oldestOf(owner: Owner): Promise<KvFile | undefined> {
    for (let most = 1; ; most *= 2) {
      const oldest = [...firstOf(owner.files.values(), most)];
      const news = await Promise.all(oldest.map((file) => this.#seeUse(file)));
      const [first] = owner.files.values();
      if (!news.includes(true) || most > owner.files.size) return first;
      owner.files = new Map([...owner.files].sort(([, a], [, b]) => a.usedMs - b.usedMs));
    }
  }

  /** @returns whether another worker used a file after this one knew of. */
  async #seeUse(file: KvFile): Promise<boolean> {
    const stats = await lstat(join(this.dir, file.name)).catch(() => undefined);
    // The file system keeps a time as whole ns, which the number of ms may be a little less than.
    if (stats === undefined || stats.mtimeMs < file.usedMs + 1) return false;
    file.usedMs = stats.mtimeMs;
    return true;
  }

  async #delete(file: KvFile): Promise<void> {
    this.#forget(file);
    await unlink(join(this.dir, file.name)).catch((error) => {
      if (!isMissing(error)) throw error;
    });
  }
}

/** The first values of many. */
function* firstOf<T>(values: Iterable<T>, most: number): Generator<T> {
  let left = most;
  for (const value of values) {
    if (left-- <= 0) return;
    yield value;
  }
}

const isOurs = (name: string) => name === ID_FILE || EXTENT_NAME.test(name) || TEMPORARY_NAME.test(name);

const hexOf = (hash: string) => Buffer.from(hash, 'base64').toString('hex');

/** Whether there is no room: on the disk, or in what of it this user may have. */
const isFull = (error: unknown) => ['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '');

const isMissing = (error: unknown) => (error as NodeJS.ErrnoException).code === 'ENOENT';

/** Makes a folder for this user alone, or makes one such that is there. @throws ServingError config_invalid */
async function makeOwnFolder(dir: string): Promise<void> {
  await makeFolder(dir);
  const own = (await readdir(dir)).filter((name) => isOurs(name));
  await narrowWithin(dir, own);
  await assertOwnAlone(dir);
}

/** Values that others could write would be computed with. @throws ServingError config_invalid */
async function assertOwnAlone(dir: string): Promise<void> {
  if (isOwnAlone(await lstat(dir))) return;
  throw new ServingError(
    'config_invalid',
    `--kv-disk-dir ${dir} can be used by others than the user of this process: name a folder within it that ` +
      'does not exist yet, or chmod it to 700',
  );
}

/** Writes a file under another name, and gives it its own when it is whole. */
async function writeWhole(path: string, content: Buffer): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    await writeFile(temporary, content, { flag: 'wx', mode: 0o600 });
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw error;
  }
}

/** The folder's name for itself. @param id what it is called from now on where it has no name. */
async function readId(dir: string, id: string): Promise<string> {
  const path = join(dir, ID_FILE);
  const temporary = `${path}.${randomUUID()}`;
  const isId = (text: string) => /^[0-9a-f-]{36}$/.test(text);
  const known = await readFile(path, 'latin1').catch(() => undefined);
  if (known !== undefined && isId(known)) return known;
  if (known !== undefined) await unlink(path);
  try {
    await writeFile(temporary, id, { flag: 'wx', mode: 0o600 });
    await link(temporary, path);
    return id;
  } catch (error) {
    // Another worker that starts now was first: its name is there, whole.
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return await readFile(path, 'latin1');
    throw error;
  } finally {
    await unlink(temporary).catch(() => {}); // it need not be there if the disk is full
  }
}

/**
 * Reads the first bytes of a file, of a link never: what it leads to may be anything.
 * @returns as many as there are, at most `bytes`.
 */
async function readWhole(path: string, into: Buffer, bytes: number): Promise<Buffer> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    let length = 0;
    while (length < bytes) {
      const { bytesRead } = await handle.read(into, length, bytes - length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return into.subarray(0, length);
  } finally {
    await handle?.close();
  }
}
