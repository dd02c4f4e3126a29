/**
 * Certificates of gRPC that change while channels and servers use them. grpc-js has such credentials only for a watcher
 * of files of its own, which would use whatever it finds; here a pair is checked first (credentials.ts).
 */
import { type CallCredentials, ChannelCredentials, type ChannelOptions, ServerCredentials } from '@grpc/grpc-js';

/** A certificate, its private key, and the authority of its peers, in PEM. */
export interface Pems {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca: Buffer;
}

type Connector = ReturnType<ChannelCredentials['_createSecureConnector']>;
type Target = Parameters<ChannelCredentials['_createSecureConnector']>[0];

/** A channel proves itself anew with every connection that it makes, by the newest certificate. */
export class RenewedChannel extends ChannelCredentials {
  #newest: ChannelCredentials;

  constructor(first: ChannelCredentials) {
    super();
    this.#newest = first;
  }

  renew(newest: ChannelCredentials): void {
    this.#newest = newest;
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(target: Target, options: ChannelOptions, calls?: CallCredentials): Connector {
    const current = () => this.#newest._createSecureConnector(target, options, calls);
    const { getCallCredentials, waitForReady, destroy } = bound(current());
    return { connect: (socket) => current().connect(socket), getCallCredentials, waitForReady, destroy };
  }
}

/** The parts of a connector that do not depend on certificates. */
const bound = (connector: Connector): Omit<Connector, 'connect'> => ({
  getCallCredentials: () => connector.getCallCredentials(),
  waitForReady: () => connector.waitForReady(),
  destroy: () => connector.destroy(),
});

const contextOf = ({ cert, key, ca }: Pems) => ({ cert: [cert], key: [key], ca });

/** A server asks every caller for a certificate of the authority. */
export class RenewedServer extends ServerCredentials {
  constructor(first: Pems) {
    super({ requestCert: true }, contextOf(first));
  }

  renew(newest: Pems): void {
    this.updateSecureContextOptions(contextOf(newest));
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}
