/**
 * A small name server that answers over UDP and TCP as the one of a cluster does: a name has all addresses of a
 * service, answers are kept for a while, and a service without addresses does not exist. It can also be silent, or
 * answer wrongly.
 */
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { formatHostPort } from '../../services/lib/process/host-port.ts';

/** What it answers: the truth, nothing at all, that no name exists, or that it has failed. */
type Mood = 'true' | 'silent' | 'no such name' | 'failed';

const NAME_SERVER_PORT = 53;
const TYPE = { A: 1, OPT: 41 } as const;
const CLASS_IN = 1;
const CODE = { ok: 0, malformed: 1, failed: 2, noSuchName: 3, notImplemented: 4 } as const;
const HEADER_BYTES = 12;
/** Longest answer over UDP to a client that names no other limit; a longer one is asked for again over TCP. */
const UDP_BYTES = 512;
const MAX_UDP_BYTES = 1232;
/** Compression: the name of the question, which begins behind the header. */
const SAME_NAME = 0xc000 | HEADER_BYTES;

interface Kept {
  readonly addresses: readonly string[];
  readonly untilMs: number;
}

interface Query {
  readonly id: number;
  /** Without the dot at its end, in small letters. */
  readonly name: string;
  readonly type: number;
  readonly recursion: boolean;
  /** The question as it came. */
  readonly question: Buffer;
  /** Longest answer that the client takes over UDP, if it says so. */
  readonly limit: number | undefined;
}

export class NameServer {
  mood: Mood = 'true';
  /** Time for which an answer is kept, though the addresses change, in ms. */
  cacheMs = 0;
  /** Number of queries since it was opened, by what it answered. */
  readonly queries: Record<Mood, number> = { true: 0, silent: 0, 'no such name': 0, failed: 0 };
  readonly #names = new Map<string, readonly string[]>();
  readonly #kept = new Map<string, Kept>();
  readonly #udp: UdpSocket = createSocket('udp4');
  readonly #tcp: Server = createServer((socket) => this.#accept(socket));
  readonly #sockets = new Set<Socket>();
  #turn = 0;

  /** @throws Error of the system, such as EADDRINUSE. */
  static async open(host: string, port = NAME_SERVER_PORT): Promise<NameServer> {
    const server = new NameServer();
    try {
      server.#tcp.listen(port, host);
      await once(server.#tcp, 'listening');
      server.#udp.on('message', (message, { address, port }) => {
        const answer = server.#answer(message, UDP_BYTES);
        if (answer) server.#udp.send(answer, port, address, () => {});
      });
      server.#udp.bind((server.#tcp.address() as AddressInfo).port, host);
      await once(server.#udp, 'listening');
      return server;
    } catch (error) {
      server.close();
      throw error;
    }
  }

  /** The host:port at which it is asked. */
  get address(): string {
    const { address, port } = this.#tcp.address() as AddressInfo;
    return formatHostPort(address, port);
  }

  /** Gives a name these IPv4 addresses from now on. */
  set(name: string, addresses: readonly string[]): void {
    this.#names.set(name.toLowerCase(), addresses);
  }

  close(): void {
    this.#tcp.close();
    for (const socket of this.#sockets) socket.destroy();
    this.#udp.close();
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('error', () => {});
    let waiting = Buffer.alloc(0);
    socket.on('data', (part) => {
      waiting = Buffer.concat([waiting, part]);
      while (waiting.length >= 2 && waiting.length >= 2 + waiting.readUInt16BE(0)) {
        const end = 2 + waiting.readUInt16BE(0);
        const answer = this.#answer(waiting.subarray(2, end), Infinity);
        waiting = waiting.subarray(end);
        if (answer) socket.write(Buffer.concat([uint16(answer.length), answer]));
      }
    });
  }

  /** @param limit longest answer in bytes. @returns undefined where there is none. */
  #answer(message: Buffer, limit: number): Buffer | undefined {
    const query = parse(message);
    if (query === undefined) return undefined;
    if (typeof query !== 'object') return message.length < 2 ? undefined : reply(message.readUInt16BE(0), query);
    this.queries[this.mood]++;
    if (this.mood === 'silent') return undefined;
    if (this.mood === 'failed') return reply(query.id, CODE.failed, query);
    const addresses = this.mood === 'true' ? this.#addressesOf(query.name) : [];
    if (addresses.length === 0) return reply(query.id, CODE.noSuchName, query);
    // A name that exists has no record of another type.
    if (query.type !== TYPE.A) return reply(query.id, CODE.ok, query);
    const answer = reply(query.id, CODE.ok, query, addresses);
    const longest = limit === Infinity ? Infinity : Math.max(limit, query.limit ?? 0);
    return answer.length <= longest ? answer : reply(query.id, CODE.ok, query, [], true);
  }

  /** Addresses in another order each time, as the name servers of clusters balance load. */
  #addressesOf(name: string): readonly string[] {
    const nowMs = performance.now();
    let kept = this.#kept.get(name);
    if (kept === undefined || kept.untilMs <= nowMs) {
      kept = { addresses: this.#names.get(name) ?? [], untilMs: nowMs + this.cacheMs };
      this.#kept.set(name, kept);
    }
    const { addresses } = kept;
    const first = this.#turn++ % Math.max(1, addresses.length);
    return [...addresses.slice(first), ...addresses.slice(0, first)];
  }
}

/** @returns the code of the refusal for a message that is not a query of this kind; undefined for an answer. */
function parse(message: Buffer): Query | number | undefined {
  if (message.length < HEADER_BYTES) return CODE.malformed;
  const flags = message.readUInt16BE(2);
  if (flags & 0x8000) return undefined;
  if ((flags >> 11) & 0xf) return CODE.notImplemented;
  if (message.readUInt16BE(4) !== 1) return CODE.malformed;
  const labels: string[] = [];
  let at = HEADER_BYTES;
  for (;;) {
    const length = message[at++];
    if (length === undefined || length > 63 || at + length + 4 > message.length) return CODE.malformed;
    if (length === 0) break;
    labels.push(message.toString('latin1', at, at + length).toLowerCase());
    at += length;
  }
  const end = at + 4;
  const head = {
    id: message.readUInt16BE(0),
    name: labels.join('.'),
    type: message.readUInt16BE(at),
    recursion: (flags & 0x100) !== 0,
    question: message.subarray(HEADER_BYTES, end),
  };
  if (message.readUInt16BE(at + 2) !== CLASS_IN) return CODE.notImplemented;
  // EDNS: a record without a name says in its class how much the client takes.
  const takes = message.length >= end + 5 && message[end] === 0 && message.readUInt16BE(end + 1) === TYPE.OPT;
  return { ...head, limit: takes ? Math.min(message.readUInt16BE(end + 3), MAX_UDP_BYTES) : undefined };
}

function reply(id: number, code: number, query?: Query, addresses: readonly string[] = [], cut = false): Buffer {
  const flags = 0x8400 | (cut ? 0x200 : 0) | (query?.recursion ? 0x180 : 0) | code;
  const withLimit = query?.limit !== undefined;
  const counts = [id, flags, query ? 1 : 0, addresses.length, 0, withLimit ? 1 : 0];
  const records = addresses.map((address) =>
    // It changes at any time, so it may be kept for no time.
    Buffer.concat([...[SAME_NAME, TYPE.A, CLASS_IN, 0, 0, 4].map(uint16), Buffer.from(address.split('.').map(Number))]),
  );
  const options = withLimit ? [Buffer.from([0]), ...[TYPE.OPT, MAX_UDP_BYTES, 0, 0, 0].map(uint16)] : [];
  return Buffer.concat([...counts.map(uint16), query?.question ?? Buffer.alloc(0), ...records, ...options]);
}

function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}
