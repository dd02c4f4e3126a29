/**
 * Reading a connection on when its client takes its answer again, without pausing Node's parser, which Node has no
 * documented way for.
 */
import type { Socket } from 'node:net';
import { tcpOf } from './tcp.ts';

interface Inside {
  /** Set by Node when a request comes while the answer before it waits for its client. */
  _paused?: boolean;
}

/**
 * Must be called when a request has come behind another one. If the client does not take the answer before it, Node has
 * stopped reading, and pauses its parser when the bytes at hand are parsed. Over TLS more may have been decrypted by
 * then: the paused parser gets it, and tells of a client that does not speak HTTP (HPE_PAUSED). The connection would be
 * destroyed, although its client has done nothing wrong. Here the parser takes what has been read (a few records), and
 * only reading waits.
 */
export function readLater(socket: Socket): void {
  const inside = socket as Socket & Inside;
  if (tcpOf(socket) === socket || !inside._paused) return;
  inside._paused = false;
  socket.off('drain', readOn).once('drain', readOn);
}

function readOn(this: Socket): void {
  this.resume();
}
