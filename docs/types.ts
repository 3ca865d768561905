// Models and messages of realtime_service, made from its Rust types: do not edit.
// UPDATE_TYPES=1 cargo test --lib typescript

/** An order of a client, made from a cart. */
export type Order = {
  /** Id of the order; its room is `order-{id_order}`. */
  id_order: number,
  /** When it was placed. */
  order_date: string,
  /** `pending`, `confirmed`, `delivered`, … */
  status: string,
  /** Price of everything in it, in the marketplace's currency. */
  total_amount: number,
  /** `pickup` or `delivery`. */
  delivery_type: string,
  /** Who ordered. */
  id_client: number,
  /** The cart that it came from. */
  id_cart: number,
  /** How it is paid. */
  id_payment_method: number,
  /** The delivery, once there is one. */
  id_delivery?: number,
};

/** A product that a seller offers. */
export type Product = {
  /** Id of the product. */
  id_product: number,
  /** Who sells it. */
  id_seller: number,
  /** The inventory that holds it. */
  id_inventory: number,
  /** Its category. */
  id_category: number,
  /** Its category within that one. */
  id_sub_category: number,
  /** Name shown to clients. */
  product_name: string,
  /** Text shown to clients. */
  description?: string,
  /** Price of one, in the marketplace's currency. */
  price: number,
  /** How many are left. */
  stock: number,
  /** Picture shown to clients. */
  image_url?: string,
};

/** Someone who buys. */
export type Client = {
  /** Id of the client; its room is `client-{id_client}`. */
  id_client: number,
  /** Full name. */
  client_name: string,
  /** Address for mail from the marketplace. */
  client_email: string,
  /** Where deliveries go by default. */
  address: string,
  /** Phone number as the client wrote it. */
  phone?: string,
  /** `cedula`, `dni`, `pasaporte` or `ruc`. */
  document_type?: string,
  /** Number of that document. */
  document_number?: string,
  /** Date of birth. */
  birth_date?: string,
  /** Picture of the client. */
  avatar_url?: string,
  /** More addresses: JSON within a string. */
  additional_addresses?: string,
  /** When the account was opened. */
  created_at: string,
};

/** Someone who sells. */
export type Seller = {
  /** Id of the seller; its room is `seller-{id_seller}`. */
  id_seller: number,
  /** Full name. */
  seller_name: string,
  /** Address for mail from the marketplace. */
  seller_email: string,
  /** Phone number in digits, country code included. */
  phone: number,
  /** Name of the business; spelt so in the marketplace. */
  bussines_name: string,
  /** Where the business is. */
  location: string,
  /** When the account was opened. */
  created_at: string,
};

/** One product in a client's cart. */
export type Cart = {
  /** Id of the cart. */
  id_cart: number,
  /** Whose cart it is. */
  id_client: number,
  /** `active`, `completed` or `abandoned`. */
  status: string,
  /** What is in it. */
  id_product: number,
  /** How many of that. */
  quantity: number,
};

/** A category of products. */
export type Category = {
  /** Id of the category. */
  id_category: number,
  /** Name shown to clients. */
  category_name: string,
  /** Text shown to clients. */
  description?: string,
  /** Picture shown to clients. */
  photo?: string,
};

/** A category within a [`Category`]. */
export type SubCategory = {
  /** Id of the category within. */
  id_sub_category: number,
  /** The category that it belongs to. */
  id_category: number,
  /** Name shown to clients. */
  sub_category_name: string,
  /** Text shown to clients. */
  description?: string,
};

/** The stock of a seller. */
export type Inventory = {
  /** Id of the inventory. */
  id_inventory: number,
  /** Whose stock it is. */
  id_seller: number,
  /** When it changed last. */
  updated_at: string,
};

/** A product on its way to a client. */
export type Delivery = {
  /** Id of the delivery. */
  id_delivery: number,
  /** What is delivered. */
  id_product: number,
  /** Street and number. */
  delivery_address: string,
  /** City. */
  city: string,
  /** `pending`, `in_transit` or `delivered`. */
  status: string,
  /** When it should arrive. */
  estimated_time: string,
  /** Who brings it. */
  delivery_person: string,
  /** Price of the delivery, in the marketplace's currency. */
  delivery_cost: number,
  /** Phone number of who brings it, in digits, country code included. */
  phone: number,
};

/** A way to pay. */
export type PaymentMethod = {
  /** Id of the method. */
  id_payment_method: number,
  /** `credit_card`, `debit_card`, `cash` or `transfer`. */
  method_name: string,
  /** What the method needs to know. */
  details_payment?: string,
};

/** Someone who runs the marketplace. */
export type Admin = {
  /** Id of the admin. */
  id_admin: number,
  /** Full name. */
  admin_name: string,
  /** Address for mail from the marketplace. */
  admin_email: string,
  /** `super_admin`, `admin`, … */
  role: string,
  /** When the account was opened. */
  created_at: string,
};

/** What a client receives when a backend notifies. */
export type Notification = {
  /** Number in the room, where it was sent to one. */
  seq?: number,
  /** Number in the user's own notifications, where it was sent to a user. */
  user_seq?: number,
  /** What happened, e.g. `order_created`. */
  event: string,
  /** Any JSON, byte for byte; `null` when there was none. */
  data: unknown,
  /** A user id, a room, or `broadcast`. */
  to: string,
};

/** A message from one user to another or to a room. */
export type Message = {
  /** Id of the message, where the sender gave one. */
  id?: string,
  /** User id of the sender. */
  from: string,
  /** User id of the receiver, where there is one. */
  to?: string,
  /** The room that it goes to, where there is one. */
  room?: string,
  /** `text`, `notification` or `system`; `type` in JSON. */
  type: string,
  /** What it says. */
  content: string,
  /** Any JSON, byte for byte. */
  data?: unknown,
  /** When it was sent. */
  timestamp: string,
};

/** Repeated in the reply. */
export type MessageId = string | number;

/** Where a client is in the past of a room, or of its own notifications. */
export type LogPosition = {
  /** Another one than before: messages between may be missing. */
  epoch: string,
  /** Number of the last message that the client has. */
  seq: number,
};

/** Names a room. */
export type RoomPayload = {
  /** 1 to 128 of `A–Z a–z 0–9 _ - . :` */
  room: string,
};

/** Names a room, and what the client has of it. */
export type JoinPayload = {
  /** 1 to 128 of `A–Z a–z 0–9 _ - . :` */
  room: string,
  /** Asks for all that came since; only in a message with an `id`. */
  since?: LogPosition,
};

/** What a client sends to a room. */
export type BroadcastPayload = {
  /** One that the client is in, or may join. */
  room: string,
  /** Any JSON, passed on byte for byte; `null` when absent. */
  body?: unknown,
};

/** What the client has of its own notifications. */
export type ResumePayload = {
  /** Asks for all that came since. */
  since?: LogPosition,
};

/** What a client sends. */
export type ClientMessage = { "type": "join", id?: MessageId, payload: JoinPayload }
  | { "type": "leave", id?: MessageId, payload: RoomPayload }
  | { "type": "broadcast", id?: MessageId, payload: BroadcastPayload }
  | { "type": "resume", id?: MessageId, payload: ResumePayload };

/** Why a message was refused. */
export type ErrorCode = "invalid_json" | "unsupported_type" | "invalid_room" | "invalid_room_format" | "invalid_since" | "not_authorized" | "too_many_rooms" | "rate_limited" | "server_error";

/** What went wrong; the connection stays open. */
export type ErrorPayload = {
  /** For programs. */
  code: ErrorCode,
  /** For people. */
  error: string,
};

/** Where the client is in a room. */
export type JoinedPayload = {
  /** As it was asked for. */
  room: string,
  /** Absent, as `seq`, where `HISTORY_MESSAGES` is 0, or Redis has not told it yet; a `reset` then does. */
  epoch?: string,
  /** Number of the last message before the ones that come now. */
  seq?: number,
  /** Only with `since`: whether all messages since come now; if not, none of them does. */
  recovered?: boolean,
};

/** Where the client is in its own notifications. */
export type ResumedPayload = {
  /** Absent, as `seq`, where `HISTORY_MESSAGES` is 0, or Redis has not told it yet; a `reset` then does. */
  epoch?: string,
  /** Number of the last message before the ones that come now. */
  seq?: number,
  /** With `since`: whether all notifications since come now; `false` also where nothing is kept. */
  recovered?: boolean,
};

/** The answer to a message that had an `id`; errors also come without one. */
export type ReplyMessage = { "type": "joined", id: MessageId, payload: JoinedPayload }
  | { "type": "left", id: MessageId, payload: RoomPayload }
  | { "type": "sent", id: MessageId, payload: RoomPayload }
  | { "type": "error", id?: MessageId, payload: ErrorPayload }
  | { "type": "resumed", id?: MessageId, payload: ResumedPayload };

/** Of which room, and where the client is now. */
export type ResetPayload = {
  /** Absent: the user's own notifications. */
  room?: string,
  /** Another one than before, unless the client only was too slow for what it missed. */
  epoch: string,
  /** Number of the last message before the ones that come now. */
  seq: number,
};

/** Something may be missing: load anew what the messages are about. */
export type ResetMessage = { "type": "reset", payload: ResetPayload };

/** What members of a room get when a client broadcasts. */
export type RoomMessage = {
  /** Number of the message in the room; absent where `HISTORY_MESSAGES` is 0, or Redis was away. */
  seq?: number,
  /** Id of the sender's connection. */
  from: string,
  /** The room that it was sent to. */
  room: string,
  /** RFC 3339 in UTC, milliseconds. */
  ts: string,
  /** As the sender gave it. */
  body: unknown,
};

/** All JSON that the service sends to a client. Joins and leaves without an `id` are answered with the
 * plain texts `joined <room>` and `left <room>`. */
export type ServerMessage = ReplyMessage | ResetMessage | RoomMessage | Notification;

/** Whom a notification is for: exactly one of three. */
export type NotificationTarget = { user_id: MessageId }
  | { room: string }
  | { broadcast: true };

/** The body of `POST /api/notify`, or an element of it where it is an array. */
export type NotificationRequest = {
  /** 1 to 128 bytes. */
  event: string,
  /** Any JSON, passed on byte for byte; `null` when absent. */
  data?: unknown,
} & ({ user_id: MessageId } | { room: string } | { broadcast: true });

/** The answer to a good `POST /api/notify`. */
export type NotifyAnswer = {
  /** Errors have another body: `ErrorAnswer`. */
  status: "success",
  /** For people. */
  message: string,
  /** Connections on this instance that took it; for a batch one number each. */
  delivered: number | Array<number>,
};

/** The body of every HTTP error. */
export type ErrorAnswer = {
  /** Good answers have other values. */
  status: "error",
  /** For programs. */
  error: string,
  /** What and where, for people. */
  message: string,
};
