/**
 * One process per run: two of them would mix their checkpoints. The lock is a socket that the process listens on, named
 * by the folder, so the system gives it back whenever the process ends, also after kill -9; a file would stay. It holds
 * between the processes of one machine (on Linux of one network namespace).
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { realpath, rm } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { ServingError } from '../../services/lib/process/errors.ts';

/** Linux and Windows have sockets that are no files; elsewhere one may be left behind, and nobody answers there. */
function addressOf(name: string): string {
  if (process.platform === 'linux') return `\0${name}`;
  return process.platform === 'win32' ? `\\\\.\\pipe\\${name}` : join(tmpdir(), name);
}

/**
 * @param folder of the run, which exists
 * @returns gives the lock back
 * @throws ServingError path_unusable where another process has it, with its id.
 */
export async function lockRun(folder: string): Promise<() => Promise<void>> {
  const digest = createHash('sha256')
    .update(await realpath(folder))
    .digest('hex');
  const address = addressOf(`llavacode-train-${digest.slice(0, 32)}`);
  const server = (await listening(address)) ?? (await afterTheDead(folder, address));
  server.unref();
  return async () => {
    server.close();
    await once(server, 'close');
  };
}

/** Undefined where somebody else listens there. */
async function listening(address: string): Promise<Server | undefined> {
  const server = createServer((socket) => {
    socket.on('error', () => {}); // of somebody who asked and did not wait for the answer
    socket.end(String(process.pid));
  });
  server.listen(address);
  try {
    await once(server, 'listening');
    return server;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') return undefined;
    throw error;
  }
}

/** Removes the file of a process that is no more, and listens in its place. */
async function afterTheDead(folder: string, address: string): Promise<Server> {
  const holder = await holderOf(address);
  if (holder === undefined && !address.startsWith('\0')) await rm(address, { force: true });
  const server = holder === undefined ? await listening(address) : undefined;
  if (server !== undefined) return server;
  throw new ServingError(
    'path_unusable',
    `--to ${folder}: process ${holder ?? 'with an unknown id'} works on this run: wait for its end, or name another folder`,
  );
}

/** How long the process that has the lock may take to tell its id, in ms; it may be busy. */
const ANSWER_MS = 2_000;

/** The id of the process that listens there; undefined where none does, `?` where it does not answer in time. */
async function holderOf(address: string): Promise<string | undefined> {
  const socket = connect(address);
  socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error('no answer')));
  try {
    await once(socket, 'connect');
  } catch {
    return undefined;
  }
  return (await text(socket).catch(() => '')) || '?';
}
