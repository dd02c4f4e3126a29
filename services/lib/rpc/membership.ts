/**
 * How the two ends of a connection prove to each other that they know the system's secret, before the first byte of
 * HTTP/2. It costs one round trip per connection and nothing per call.
 *
 *   caller → server   HELLO, 32 random bytes a
 *   server → caller   32 random bytes b, seal("server", a, b, route)
 *   caller → server   seal("caller", a, b, route); from here on HTTP/2
 *
 * The server proves itself first: a caller says nothing of its prompt to a process that only has the address of a
 * worker. The random bytes make old proofs worthless. The route, which is both ends' addresses and ports, ties a proof
 * to its connection: a process in the middle, which passes each end's bytes on to the other, has two connections with
 * two routes. So a proof does not pass an address translation (NAT); there certificates are needed.
 *
 * What follows is not encrypted. On loopback only root can read or change it; encrypting KV there halved the rate of
 * the hand-over and doubled its CPU time (0.93 GB/s without, 0.47 GB/s with TLS and AES-128-GCM, on 2 cores).
 */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { CallCredentials, ChannelCredentials } from '@grpc/grpc-js';
import { SEAL_BYTES, type SystemSecret } from '../process/system-secret.ts';
import { SERVER_UNPROVEN } from './status.ts';

/** As long as what an HTTP/2 connection begins with, so that one read tells the two apart. */
const HELLO = Buffer.from('llavacode-membership/1\r\n');
const NONCE_BYTES = 32;
/** Time for the whole exchange, in ms. The other end may just load a model. */
export const PROOF_TIMEOUT_MS = 10_000;

/** `stranger`: the peer begins with something else than a proof. What it sent is still there to be read. */
export type Peer = 'member' | 'stranger';

/**
 * The server's side.
 * @throws Error when the peer's proof is wrong, or it leaves before. The caller limits the time, by closing the socket.
 */
export async function meetCaller(socket: Socket, secret: SystemSecret): Promise<Peer> {
  const hello = await take(socket, HELLO.length);
  if (!hello.equals(HELLO)) {
    socket.unshift(hello);
    return 'stranger';
  }
  const theirs = (await take(socket, NONCE_BYTES)).toString('hex');
  const mine = randomBytes(NONCE_BYTES);
  const said = [theirs, mine.toString('hex'), ...ends(socket).reverse()];
  socket.write(Buffer.concat([mine, secret.seal('server of a connection', ...said)]));
  const proof = await take(socket, SEAL_BYTES);
  if (!secret.isSealed(proof, 'caller of a connection', ...said)) throw new Error('its proof is wrong');
  return 'member';
}

/** The caller's side. @throws Error when the server has not proven itself. */
async function meetServer(socket: Socket, secret: SystemSecret): Promise<void> {
  const mine = randomBytes(NONCE_BYTES);
  socket.write(Buffer.concat([HELLO, mine]));
  const theirs = (await take(socket, NONCE_BYTES)).toString('hex');
  const proof = await take(socket, SEAL_BYTES);
  const said = [mine.toString('hex'), theirs, ...ends(socket)];
  if (!secret.isSealed(proof, 'server of a connection', ...said)) throw new Error('its proof is wrong');
  socket.write(secret.seal('caller of a connection', ...said));
}

/** Connections of a caller that proves itself and believes only servers that do. */
export class MemberCredentials extends ChannelCredentials {
  readonly #secret: SystemSecret;

  constructor(secret: SystemSecret) {
    super();
    this.#secret = secret;
  }

  override _isSecure(): boolean {
    return false; // not encrypted
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(
    ..._: Parameters<ChannelCredentials['_createSecureConnector']>
  ): ReturnType<ChannelCredentials['_createSecureConnector']> {
    return {
      connect: async (socket) => {
        const timer = setTimeout(() => socket.destroy(new Error('no answer in time')), PROOF_TIMEOUT_MS);
        try {
          await meetServer(socket, this.#secret);
          return { socket, secure: false };
        } catch (cause) {
          socket.destroy();
          throw new Error(`${SERVER_UNPROVEN} (${(cause as Error).message})`, { cause });
        } finally {
          clearTimeout(timer);
        }
      },
      waitForReady: async () => {},
      getCallCredentials: () => CallCredentials.createEmpty(),
      destroy: () => {},
    };
  }
}

/** Both ends of the connection, this one first. An IPv4 address has one form on either end. */
function ends({ localAddress = '', localPort = 0, remoteAddress = '', remotePort = 0 }: Socket): string[] {
  const plain = (address: string) => address.replace(/^::ffff:/i, '').replace(/%.*/, '');
  return [`${plain(localAddress)} ${localPort}`, `${plain(remoteAddress)} ${remotePort}`];
}

/** Reads so many bytes and leaves the rest. @throws Error when the connection ends before. */
function take(socket: Socket, bytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const settle = (finish: () => void) => {
      socket.off('readable', read).off('end', left).off('close', left).off('error', failed);
      finish();
    };
    const left = () => settle(() => reject(new Error('it ended the connection before it had proven itself')));
    const failed = (error: Error) => settle(() => reject(error));
    const read = () => {
      const found = socket.read(bytes) as Buffer | null;
      if (found === null) return;
      if (found.length === bytes) settle(() => resolve(found));
      else left();
    };
    socket.on('readable', read).on('end', left).on('close', left).on('error', failed);
    read();
    if (socket.destroyed) left();
  });
}
