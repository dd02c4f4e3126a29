/** Addresses of the form `host:port`, with IPv6 hosts in brackets: one place reads them and one writes them. */

export interface HostPort {
  /** A name, an IPv4 address, or an IPv6 address without brackets. */
  readonly host: string;
  /** 1 to 65535. */
  readonly port: number;
}

const HOST_PORT = /^(?:(?<name>[^\s:,[\]]+)|\[(?<ipv6>[0-9a-fA-F:.]+)\])(?::(?<port>\d{1,5}))?$/;

/**
 * Reads `host:port`; undefined where the text does not have that form.
 * @param defaultPort the port of a host without one; such a host is not taken if undefined.
 */
export function parseHostPort(text: string, defaultPort?: number): HostPort | undefined {
  const { name, ipv6, port = defaultPort } = HOST_PORT.exec(text)?.groups ?? {};
  const host = name ?? ipv6;
  const number = Number(port);
  return host === undefined || !(number >= 1 && number <= 65_535) ? undefined : { host, port: number };
}

/** Writes `host:port`; an IPv6 address gets its brackets. */
export const formatHostPort = (host: string, port: number) =>
  host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
