/** The TCP connection below a socket, which Node has no documented name for. */
import type { Socket } from 'node:net';

interface Inside {
  /** Of a TLS socket: the socket that it encrypts. */
  readonly _parent?: Socket | null;
  readonly _handle?: { readonly bytesWritten: number; readonly writeQueueSize: number } | null;
}

/** The socket itself, if it is not a TLS socket. */
export const tcpOf = (socket: Socket): Socket => (socket as Socket & Inside)._parent ?? socket;

/**
 * Bytes that the system has taken to send. `bytesWritten` counts those that still wait in the process, too, and
 * `writableLength` those of a large write until all of it is out.
 */
export function bytesTaken(socket: Socket): number {
  const { _handle: handle } = tcpOf(socket) as Socket & Inside;
  return handle ? handle.bytesWritten - handle.writeQueueSize : 0;
}
