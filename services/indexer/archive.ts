/**
 * Reads uploads in the forms that they may have: JSON, tar (gzipped or not) and zip. All bytes of them are untrusted.
 */
import { constants } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { crc32, createGunzip } from 'node:zlib';
import { extract } from 'tar-stream';
import { type Entry, fromFdPromise } from 'yauzl';
import { z } from 'zod';
import { inTurns, Turns } from '../lib/async/turns.ts';
import { ServingError } from '../lib/process/errors.ts';
import { type JsonLimits, jsonSteps } from '../lib/text/json-reader.ts';
import type { Sources } from './sources.ts';
import { Spool, spoolFailed } from './spool.ts';
import { Upload, type UploadLimits } from './upload.ts';

export const UPLOAD_FORMATS = ['json', 'tar', 'tar.gz', 'zip'] as const;
export type UploadFormat = (typeof UPLOAD_FORMATS)[number];

/** JSON must lie in memory as a whole, several times over, to be parsed; archives are read as they come. */
const MAX_JSON_BYTES = 32 * 1024 * 1024;

interface UploadBody {
  readonly format: UploadFormat;
  /** Number of leading folders to drop from each path. */
  readonly strip: number;
  readonly bytes: AsyncIterable<Uint8Array>;
}

/**
 * Reads an upload to its end. The caller must `close` it when the sources have been read.
 * @throws ServingError invalid_request for bytes that are not such an archive, or not all of it, and for paths that
 *   lead out of the repository; payload_too_large; spool_failed; the signal's reason.
 */
export async function readUpload(
  { format, strip, bytes }: UploadBody,
  limits: UploadLimits,
  signal: AbortSignal,
): Promise<Sources & { close(): Promise<void> }> {
  const upload = await Upload.open(limits, strip);
  const body = bounded(bytes, format, limits.maxUploadBytes, signal);
  try {
    const sources =
      format === 'json'
        ? await readJson(body, upload, limits, signal)
        : format === 'zip'
          ? await readZip(body, upload, signal)
          : await readTar(body, upload, format === 'tar.gz', signal);
    return { ...sources, close: () => upload.close() };
  } catch (error) {
    await upload.close();
    signal.throwIfAborted();
    if (error instanceof ServingError) throw error;
    // An error of the system comes from the spool that a zip was read from.
    if ((error as NodeJS.ErrnoException).syscall !== undefined) spoolFailed(error as Error);
    throw new ServingError('invalid_request', `the upload is not a valid ${format}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

interface Body extends AsyncIterable<Uint8Array> {
  /** Bytes received so far. */
  readonly received: number;
}

function bounded(bytes: AsyncIterable<Uint8Array>, format: UploadFormat, maxBytes: number, signal: AbortSignal): Body {
  const [limit, remedy] =
    format === 'json' && maxBytes > MAX_JSON_BYTES
      ? [MAX_JSON_BYTES, 'the limit for JSON: send a tar, tar.gz or zip']
      : [maxBytes, '--max-upload-bytes'];
  let received = 0;
  return {
    get received() {
      return received;
    },
    async *[Symbol.asyncIterator]() {
      for await (const part of bytes) {
        signal.throwIfAborted();
        received += part.length;
        if (received > limit) {
          throw new ServingError('payload_too_large', `the upload is larger than ${limit} bytes (${remedy})`);
        }
        yield part;
      }
    },
  };
}

const file = z.strictObject({ path: z.string().min(1), content: z.string() });
const deletion = z.strictObject({ path: z.string().min(1), deleted: z.literal(true) });
const jsonUpload = z.union([
  z.strictObject({ files: z.array(z.unknown()) }),
  z.strictObject({ changes: z.array(z.unknown()), base_version: z.string().optional() }),
]);
const change = z.union([file, deletion]);

/** What an upload in JSON may consist of: so many of each for every file, and some more. */
function jsonLimits({ maxRepoFiles }: UploadLimits): JsonLimits {
  const each = (count: number) => count * maxRepoFiles + 1_000;
  return { depth: 8, containers: each(1), strings: each(2), names: each(2), numbers: 1_000 };
}

async function readJson(body: Body, upload: Upload, limits: UploadLimits, signal: AbortSignal): Promise<Sources> {
  const parts: Uint8Array[] = [];
  for await (const part of body) parts.push(part);
  const sent = jsonUpload.safeParse(await inTurns(jsonSteps(Buffer.concat(parts), jsonLimits(limits)), signal));
  if (!sent.success) throw notAnUpload();
  const whole = 'files' in sent.data;
  const items = 'files' in sent.data ? sent.data.files : sent.data.changes;
  upload.assertCount(items.length);
  // Nothing is taken of an upload that has a mistake anywhere.
  const known = await inTurns(checked(items, whole ? file : change), signal);
  for (const item of known) {
    const path = upload.enter(item.path);
    if (path === undefined)
      throw new ServingError('invalid_request', `path ${JSON.stringify(item.path)} does not name a file`);
    if ('deleted' in item) upload.delete(path);
    else await addText(upload, path, item.content);
  }
  return whole ? upload.all(signal) : upload.changes((sent.data as { base_version?: string }).base_version, signal);
}

/** The items of an upload. It yields between two of them. */
function* checked<T>(items: readonly unknown[], schema: z.ZodType<T>): Generator<void, T[]> {
  const known: T[] = [];
  for (const item of items) {
    const result = schema.safeParse(item);
    if (!result.success) throw notAnUpload();
    known.push(result.data);
    yield;
  }
  return known;
}

const notAnUpload = () =>
  new ServingError(
    'invalid_request',
    'body must be {files: [{path, content}]} or {changes: [{path, content} | {path, deleted: true}], base_version?}',
  );

async function addText(upload: Upload, path: string, content: string): Promise<void> {
  const size = Buffer.byteLength(content);
  // JSON can spell half of a surrogate pair, which UTF-8 cannot.
  const reason = upload.unwanted(path, size) ?? (/\p{Surrogate}/u.test(content) ? 'invalid_utf8' : undefined);
  if (reason) upload.skip(path, reason);
  else await upload.add(path, Buffer.from(content));
}

/** A tar ends with two blocks of zeros, in bytes: one that does not was cut off between two files. */
const TAR_END = 1_024;
/** Every entry gets a copy of the global records. */
const MAX_PAX_RECORDS = 64;
/**
 * Bytes of an extended header or a long name. tar-stream allows 4 MiB, which it reads in one go: records of a few bytes
 * take it 0.7 s. The records of one file, such as its path and its attributes, are a few KiB.
 */
const MAX_TAR_HEADER = 128 * 1024;
/** Bytes that tar-stream gets at once. */
const TAR_PART = 64 * 1024;

/** What is read of tar-stream's state; nothing that it publishes tells the size of a header before it is read. */
interface TarState {
  /** Whether an extended header or a long name comes next. */
  readonly _longHeader: boolean;
  /** Bytes of it that have not come yet. */
  readonly _missing: number;
}

/** @throws ServingError invalid_request */
function assertSmallHeader({ _longHeader, _missing }: TarState): void {
  if (!_longHeader || _missing <= MAX_TAR_HEADER) return;
  const message = `the tar has an extended header of ${_missing} bytes, more than ${MAX_TAR_HEADER}: make the tar without it`;
  throw new ServingError('invalid_request', message);
}

async function readTar(body: Body, upload: Upload, gzipped: boolean, signal: AbortSignal): Promise<Sources> {
  const tar = extract();
  const turns = new Turns();
  let zeros = 0;
  async function* counted(unpacked: AsyncIterable<Uint8Array>) {
    for await (const received of unpacked) {
      upload.count(received.length, body.received);
      for (let at = 0; at < received.length; at += TAR_PART) {
        const part = received.subarray(at, at + TAR_PART);
        const last = part.findLastIndex((byte) => byte !== 0);
        zeros = last < 0 ? zeros + part.length : part.length - 1 - last;
        yield part;
        assertSmallHeader(tar as unknown as TarState);
        if (turns.over) await turns.next();
      }
    }
  }
  const source = Readable.from(body, { objectMode: false });
  const fed = gzipped
    ? pipeline(source, createGunzip(), counted, tar as unknown as NodeJS.WritableStream, { signal })
    : pipeline(source, counted, tar as unknown as NodeJS.WritableStream, { signal });
  fed.catch(() => {}); // awaited below, when the entries have ended
  try {
    for await (const entry of tar) {
      const { name, type, size = 0, pax } = entry.header;
      if (Object.keys(pax ?? {}).length > MAX_PAX_RECORDS) {
        const message = `an entry of the tar has more than ${MAX_PAX_RECORDS} records in its extended header: make the tar without them`;
        throw new ServingError('invalid_request', message);
      }
      const path = upload.enterEntry(name);
      const reason = path === undefined || type === 'directory' ? undefined : tarSkip(upload, path, type, size);
      if (path === undefined || type === 'directory' || reason !== undefined) {
        if (path !== undefined && reason !== undefined) upload.skip(path, reason);
        entry.resume();
        continue;
      }
      await upload.add(path, await gathered(entry));
    }
  } catch (error) {
    tar.destroy(error as Error);
    // The pipeline's error says more than that the entries ended early; a refusal of ours says most.
    if (!(error instanceof ServingError)) await fed;
    throw error;
  }
  await fed;
  if (zeros < TAR_END) throw new Error('the end marker is missing (was it cut off?)');
  return upload.all(signal);
}

function tarSkip(upload: Upload, path: string, type: string | null | undefined, size: number) {
  if (type === 'symlink') return 'symlink';
  if (type !== 'file' && type !== 'contiguous-file') return 'special';
  return upload.unwanted(path, size);
}

async function readZip(body: Body, upload: Upload, signal: AbortSignal): Promise<Sources> {
  const spool = await Spool.open();
  try {
    for await (const part of body) await spool.append(part);
    const zip = await fromFdPromise(spool.fd, { lazyEntries: true, autoClose: false });
    for await (const entry of zip.eachEntry()) {
      const path = upload.enterEntry(entry.fileName);
      if (path === undefined || entry.fileName.endsWith('/')) continue;
      const reason = zipSkip(entry) ?? upload.unwanted(path, entry.uncompressedSize);
      if (reason) {
        upload.skip(path, reason);
        continue;
      }
      upload.count(entry.uncompressedSize, spool.size); // the size it claims; yauzl checks the real one as it unpacks
      if (entry.isEncrypted())
        throw new ServingError('invalid_request', `file ${path} of the zip is encrypted: send it without a password`);
      const content = await gathered(await zip.openReadStreamPromise(entry));
      if (crc32(content) !== entry.crc32) throw new Error(`file ${path} is damaged`);
      await upload.add(path, content);
    }
    return upload.all(signal);
  } finally {
    await spool.close();
  }
}

/** Why an entry is skipped, by the file mode that Unix tools write. */
function zipSkip({ versionMadeBy, externalFileAttributes }: Entry) {
  if (versionMadeBy >>> 8 !== 3) return undefined;
  const type = (externalFileAttributes >>> 16) & constants.S_IFMT;
  if (type === constants.S_IFLNK) return 'symlink';
  return type === 0 || type === constants.S_IFREG ? undefined : 'special';
}

async function gathered(stream: AsyncIterable<unknown>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const part of stream) parts.push(part as Uint8Array);
  return Buffer.concat(parts);
}
